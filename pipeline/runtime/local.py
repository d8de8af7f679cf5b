"""Keep a Ray cluster on this machine while it is needed, started with `ray start` as a person would."""

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
    """Yield `environment` with the RAY_ADDRESS of a cluster: the one that it names, or one started on this machine.

    The cluster that was started stops at the end. `say(title, text)` tells the user which one is used. Raises
    RuntimeError if Ray does not start.
    """
    if environment.get("RAY_ADDRESS"):
        say("cluster", f"using the Ray cluster at RAY_ADDRESS = {environment['RAY_ADDRESS']}")
        yield environment
        return
    defaults = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A stopped job gets a minute, not three seconds, to commit its work.
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        # At the end no other node can take over, so Ray need not wait half a minute for one.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    environment = {**defaults, **environment}
    if environment["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in environment:
        # Writes ~/.ray/auth_token if there is none, readable by its owner only; the token itself is not shown.
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, umask=0o077
        )
    gcs, dashboard, client, agent = free_ports(4)
    command = shlex.split(
        f"ray start --head --block --node-ip-address=127.0.0.1 --port={gcs} --dashboard-host=127.0.0.1 "
        f"--dashboard-port={dashboard} --dashboard-agent-listen-port={agent} --ray-client-server-port={client} "
        f"--num-cpus={max(2, os.cpu_count() or 2)}"
    )
    say("cluster", shlex.join(command))
    with tempfile.TemporaryFile("w+") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
            wait_for_cluster(head, environment, log)
            print(f"  export RAY_AUTH_MODE=token RAY_ADDRESS={environment['RAY_ADDRESS']}   # to type the lines below")
            yield environment
        finally:
            stop(head)


def wait_for_cluster(
    head: subprocess.Popen[bytes], environment: dict[str, str], log: IO[str], seconds: float = 120
) -> None:
    """Wait until the cluster takes a job. Raises RuntimeError if `ray start` ends or `seconds` pass before that."""
    # A job that does nothing: the cluster answers some seconds before it can take one.
    probe = ["ray", "job", "submit", "--no-wait", "--", "true"]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and head.poll() is None:
        if subprocess.run(probe, env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(1)
    log.seek(0)
    print(log.read(), file=sys.stderr)
    raise RuntimeError("the Ray cluster did not start; what `ray start` said is above")


def stop(head: subprocess.Popen[bytes]) -> None:
    """End this cluster and no other: `ray start --block` takes its processes with it on SIGTERM."""
    head.terminate()
    try:
        head.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
