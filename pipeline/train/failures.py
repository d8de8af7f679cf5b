"""How a training ends other than by its last step: what Ray Train may start again and what not, a worker that hangs, a
node that is taken away, SIGTERM to the job. docs/failures.md lists every failure, its outcome and its test."""

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
    """Ends the run, in Ray Train's controller, at what starting the workers again cannot help, and after too many failures
    with no checkpoint in between; a run of weeks may lose any number of nodes. Says what happened, line by line."""

    def __init__(self, folder: str, max_failures: int) -> None:
        self.folder, self.max_failures, self.failures = folder, max_failures, 0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is not None:
            self.failures = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
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
                    f"training failed more than cluster.train.max_failures = {self.max_failures} times with no checkpoint in "
                    f"between ({in_short(next(iter(worker_exceptions.values())))}); the same command goes on from the last "
                    f"checkpoint in {self.folder}"
                )
            )


def in_short(error: Exception) -> str:
    """Ray's errors say what happened in their first line or in their last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


def explained(run: Run, error: "ray.train.TrainingFailedError") -> Exception:
    """The cause of a failed run, for the user: what a worker or the controller raised."""
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
                f"cluster.train.start_timeout_s = {wanted.start_timeout_s:g} s; `ray status` says what is asked for and what "
                f"there is; lower it, or wait longer; the same command goes on from the last checkpoint in {run.spec.folder}"
            )
        if full := no_room(run.spec.folder, cause):
            return full
    return JobFailed(
        f"training failed ({in_short(causes[0])}); the same command goes on from the last checkpoint in {run.spec.folder}"
    )


@contextlib.contextmanager
def stop_through(key: str) -> Iterator[None]:
    """While workers train, SIGTERM does not end this process but asks them, by a key in the cluster's store, to save and end."""
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
    """What a worker is told: to stop through `key`, or that a node of any worker is being drained: a spot instance with
    notice, a pod or raylet with SIGTERM, an autoscaler's idle node. Every rank calls it."""
    if ray.train.get_preemption_info() is not None:
        return StopRequest.MOVE
    return StopRequest.STOP if rank == 0 and has_key(key) else StopRequest.GO_ON


def heartbeat(hang_timeout_s: int) -> None:
    """End this process, with the stacks of its threads in its log, unless this is called again in time.

    Ray Train sees a process that stands still, but not a step that does not end, and torch.distributed only the others'
    waiting. Does so from a thread without Python, so in a call that holds the interpreter's lock, too.
    """
    faulthandler.dump_traceback_later(hang_timeout_s, exit=True, file=2)


def stop_watchdog() -> None:
    """No call of `alive` will come."""
    faulthandler.cancel_dump_traceback_later()
