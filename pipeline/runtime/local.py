"""A Ray cluster on this machine for as long as it is needed, started by `ray start` as a person would."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO


@contextlib.contextmanager
def local_cluster(environment: dict[str, str], say: Callable[[str, str], None]) -> Iterator[dict[str, str]]:
    """`environment`, made to reach a Ray cluster: the one that its RAY_ADDRESS names, or one of our own on this machine,
    stopped at the end. `say(title, text)` tells the user which. Raises RuntimeError if Ray does not start.
    """
    if environment.get("RAY_ADDRESS"):
        say("cluster", f"using the Ray cluster at RAY_ADDRESS = {environment['RAY_ADDRESS']}")
        yield environment
        return
    defaults = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # a stopped job has a minute, not three seconds, to commit what it has
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        # at our end there is no other node to take over, and nothing to wait half a minute for
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    environment = {**defaults, **environment}
    if environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environment:
        # writes ~/.ray/auth_token if there is none, for its owner only; the token itself is not shown
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, umask=0o077
        )
    gcs, dashboard, client, agent = free_ports(4)
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--num-cpus={max(2, os.cpu_count() or 2)}"]
    say("cluster", shlex.join(command))
    with tempfile.TemporaryFile("w+") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
            wait_for_cluster(head, environment, log)
            print(
                f"  export RAY_AUTH_MODE=token RAY_ADDRESS={environment['RAY_ADDRESS']}   # to type the lines below yourself"
            )
            yield environment
        finally:
            stop(head)


def wait_for_cluster(
    head: subprocess.Popen[bytes], environment: dict[str, str], log: IO[str], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if head.poll() is None:
            # a job that does nothing: the cluster answers some seconds before it can take one
            probe = subprocess.run(
                ["ray", "job", "submit", "--no-wait", "--", "true"], env=environment, capture_output=True, check=False
            )
            if probe.returncode == 0:
                return
            time.sleep(1)
            continue
        break
    log.seek(0)
    print(log.read(), file=sys.stderr)
    raise RuntimeError("the Ray cluster did not start; what `ray start` said is above")


def stop(head: subprocess.Popen[bytes]) -> None:
    """End the cluster that we started, and no other: `ray start --block` takes its processes with it on SIGTERM."""
    if head.poll() is None:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
