"""Hosts on one machine, for tests of clusters: each with network, processes, /tmp, home, /dev/shm and sshd of its own.

    enter()          enter new namespaces: a machine ("the operator's") with an empty network
    start_host()     start a machine beside it, on a bridge: SSH reaches it; a test can cut it off, kill and restart it

Namespaces of processes let a host see and end its own processes only; those of mounts and network leave this machine
unchanged. When the operator's first process ends, in whatever way, the kernel ends the processes of all hosts and
removes their networks and files. Needs Linux, root, iproute2 and util-linux.
"""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOSTS = Path("/run/hosts")  # in memory: the operator's /run is not this machine's
USER = pwd.getpwuid(os.getuid()).pw_name
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)
OPERATOR = "10.77.0.254"
INSIDE = "FRAMEBRIDGE_TEST_HOSTS"
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
# what the hosts share with this machine, though it may lie in a folder that each of them has of its own
SHARED = [Path(path).resolve() for path in (ROOT, sys.prefix, sys.base_prefix)]
SSHD = """\
HostKey /run/hosts/host_key
AuthorizedKeysFile .ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


class Host(NamedTuple):
    name: str
    address: str
    process: subprocess.Popen[bytes]  # unshare; when it ends, all processes of the host do

    @property
    def root(self) -> Path:
        """Its own folders, as the operator sees them: home, tmp."""
        return HOSTS / self.name

    def cut_off(self) -> None:
        run(f"ip link set {self.name} down")

    def reconnect(self) -> None:
        run(f"ip link set {self.name} up")

    def kill(self) -> None:
        """As if the power failed: nobody is told."""
        self.process.kill()
        self.process.wait()
        link = Path("/sys/class/net", self.name)
        wait_until(lambda: not link.exists(), 30, f"{self.name}: its processes and network are still there")


def missing() -> str:
    """What this machine lacks, with the remedy; "" if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "root on Linux is needed, for namespaces; run it as root on a machine or in a privileged container"
    programs = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
    programs |= {"unshare": "util-linux"}
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    lacking = [package for program, package in programs.items() if shutil.which(program, path=path) is None]
    return f"programs are missing; install them: apt-get install {' '.join(lacking)}" if lacking else ""


def enter() -> None:
    """Start this script again as the first process of the operator's namespaces, and exit with its status.

    There it returns once the namespaces are set up.
    """
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        process = subprocess.Popen([*UNSHARE, sys.executable, *sys.argv], preexec_fn=die_with_parent)
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            process.kill()  # a signal to us alone, which unshare would not hand on
    run("mount -t tmpfs -o mode=755 hosts /run")
    Path("/run/sshd").mkdir()
    for number, path in enumerate(SHARED):
        bind(path, HOSTS / "shared" / str(number))
    furnish("operator")
    run(f"ssh-keygen -q -t ed25519 -N '' -f {HOSTS}/host_key")
    (HOSTS / "sshd_config").write_text(SSHD)
    # an account without a password may be marked as locked, which keeps sshd from letting anyone in by key
    lines = [line.split(":") for line in Path("/etc/shadow").read_text().splitlines()]
    (HOSTS / "shadow").write_text("\n".join(":".join([name, "*" if name == USER else x, *y]) for name, x, *y in lines))
    bind(HOSTS / "shadow", Path("/etc/shadow"))
    (HOSTS / "names").write_text("127.0.0.1 localhost\n")
    bind(HOSTS / "names", Path("/etc/hosts"))
    run("ip link set lo up")
    run("ip link add hosts type bridge")
    run(f"ip addr add {OPERATOR}/24 dev hosts")
    run("ip link set hosts up")


def start_host(name: str, address: str) -> Host:
    """A machine of that name and address, with the home that it had before, if it did. Comes back when SSH answers."""
    with (HOSTS / "names").open("r+") as names:
        line = f"{address} {name}\n"
        if line not in names.read():
            names.write(line)
    log = (HOSTS / f"{name}.log").open("ab")
    process = subprocess.Popen([*UNSHARE, sys.executable, __file__, name], stdout=log, stderr=log)
    in_host = f"nsenter --net=/proc/{process.pid}/ns/net"
    own = os.readlink("/proc/self/ns/net")
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own, 10, f"{name}: no network namespace")
    run(f"ip link add {name} type veth peer name eth0 netns {process.pid}")
    run(f"ip link set {name} master hosts up")
    run(f"{in_host} ip link set lo up")
    run(f"{in_host} ip addr add {address}/24 dev eth0")
    run(f"{in_host} ip link set eth0 up")
    wait_until(lambda: answers(address, 22), 30, f"{name}: SSH does not answer")
    return Host(name, address, process)


def furnish(name: str) -> None:
    """Give this machine its name, and its own /tmp, home and /dev/shm in place of those that it sees so far."""
    socket.sethostname(name)
    for folder, inside in ((HOME, "home"), (Path("/tmp"), "tmp")):
        bind(HOSTS / name / inside, folder)
        for number, path in enumerate(SHARED):
            if path.is_relative_to(folder):
                bind(HOSTS / "shared" / str(number), path)
    os.chmod("/tmp", 0o1777)
    run("mount -t tmpfs shm /dev/shm")
    run("mount -t sysfs sysfs /sys")  # which shows the network


def host(name: str) -> None:
    """The first process of a host: its sshd, and the parent of what has lost its own."""
    furnish(name)
    sshd = shutil.which("sshd")
    assert sshd is not None
    server = subprocess.Popen([sshd, "-D", "-e", "-f", f"{HOSTS}/sshd_config"])
    while os.wait()[0] != server.pid:
        pass


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def bind(source: Path, target: Path) -> None:
    """Let `target` show what is in `source`; folders are made where they are not there."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        source.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
    run(f"mount --bind {source} {target}")


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(there: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Raises TimeoutError with the words of `otherwise`."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise}, after {seconds:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    host(sys.argv[1])
