"""End a training before its last step: failures that Ray Train retries or not, hangs, lost nodes, SIGTERM to the job.

docs/failures.md lists every failure, its outcome and its test.
"""

import _thread
import contextlib
import faulthandler
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import ray.train

from ..errors import JobFailed, UserError
from ..runtime.ray_internals import cause_of, has_key, is_preemption, is_startup_timeout, put_key
from .checkpoint import no_room
from .plan import Run
from .ranks import StopRequest

log = logging.getLogger("train")


class FailurePolicy(ray.train.UserCallback):
    """End the run, in Ray Train's controller, at errors that a retry would repeat, and after too many failures.

    Failures count from the last checkpoint on: a run of weeks may lose any number of nodes. Each failure prints a line.
    """

    def __init__(self, folder: str, max_failures: int) -> None:
        self.folder, self.max_failures, self.failures = folder, max_failures, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Forget earlier failures: there is a new checkpoint."""
        if checkpoint is not None:
            self.failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise ControllerError where the run shall end."""
        for error in worker_exceptions.values():
            if isinstance(error, ValueError | JobFailed):
                raise ray.train.ControllerError(error)
        for rank, error in worker_exceptions.items():
            print(f"worker {rank} has ended: {in_short(error)}", flush=True)
        if any(is_preemption(error) for error in worker_exceptions.values()):
            return  # Ray Train may ask several times; that a node was taken away is no failure
        self.failures += 1
        if 0 <= self.max_failures < self.failures:
            raise ray.train.ControllerError(
                JobFailed(
                    f"training failed more than cluster.train.max_failures = {self.max_failures} times with no "
                    f"checkpoint in between ({in_short(next(iter(worker_exceptions.values())))}); {resume(self.folder)}"
                )
            )


def in_short(error: Exception) -> str:
    """First and last line of an error: Ray's errors say what happened in one of them."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


def resume(folder: str) -> str:
    """The remedy for a run that failed."""
    return f"the same command goes on from the last checkpoint in {folder}"


def explained(run: Run, error: "ray.train.TrainingFailedError") -> Exception:
    """The error to raise for a failed run: its cause in a worker or in the controller."""
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    causes = [cause_of(cause) for cause in failures.values()]
    for cause in causes:
        if isinstance(cause, UserError | JobFailed):
            return cause
        if isinstance(cause, ValueError):
            return JobFailed(str(cause))
        if is_startup_timeout(cause):
            wanted = run.spec.resources
            return JobFailed(
                f"no room for cluster.train.workers = {wanted.workers} in {wanted.max_failures + 1} x "
                f"cluster.train.start_timeout_s = {wanted.start_timeout_s:g} s; `ray status` shows what is asked for "
                f"and what there is; lower it, or wait longer; {resume(run.spec.folder)}"
            )
        if full := no_room(run.spec.folder, cause):
            return full
    return JobFailed(f"training failed ({in_short(causes[0])}); {resume(run.spec.folder)}")


@contextlib.contextmanager
def stop_through(key: str) -> Iterator[None]:
    """Within it, SIGTERM asks the workers, by a key in the cluster's store, to save and end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    heard = nobody = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if nobody:
            sys.exit(number)
        if not heard:
            heard = True
            threading.Thread(target=tell, daemon=True).start()  # Ray may not be called from within a call of Ray

    def tell() -> None:
        nonlocal nobody
        if has_key(f"{key}-training"):
            log.info("told to stop: saving a checkpoint first")
            put_key(key)
        else:
            nobody = True
            _thread.interrupt_main(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def poll_stop_request(key: str, rank: int) -> StopRequest:
    """Ask whether the job is to stop (`key`), or a node of any worker is being drained. Every rank calls it.

    Drained are a spot instance with notice, a pod or raylet with SIGTERM, and an autoscaler's idle node.
    """
    if ray.train.get_preemption_info() is not None:
        return StopRequest.MOVE
    return StopRequest.STOP if rank == 0 and has_key(key) else StopRequest.GO_ON


def heartbeat(hang_timeout_s: int) -> None:
    """End this process, with the stacks of its threads in its log, unless this is called again in time.

    Ray Train notices a process that is gone, but not a step that never ends; torch.distributed notices only that others
    wait. The timer is a thread without Python, so it also ends a call that holds the interpreter's lock.
    """
    faulthandler.dump_traceback_later(hang_timeout_s, exit=True, file=2)


def stop_watchdog() -> None:
    """Stop the timer: no heartbeat will follow."""
    faulthandler.cancel_dump_traceback_later()
