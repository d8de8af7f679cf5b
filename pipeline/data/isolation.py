"""Decoding in a child process: a decoder that crashes, exits or hangs costs its video only.

Ray would retry a task that segfaults without end, so nothing that can take a process down runs in a Ray
worker. Each worker drives one child, used again for clip after clip and replaced when it dies or is killed
for lateness.

A child never outlives its work: it ends when the pipe to its parent closes, the kernel kills it when its
parent dies, and a timer of the kernel's ends a decode that hangs while no parent is there to see it.
"""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.decode import DecodeFailure, decode_clip

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.schema import ClipSpan, PlannedClip
    from pipeline.settings import DataSettings

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120  # to start a child on a busy machine
GRACE_S = 5  # after which the kernel's timer ends a child whose parent did not
PR_SET_PDEATHSIG = 1

Decode = Callable[["PlannedClip", "DataSettings"], tuple[np.ndarray, "ClipSpan"]]


class IsolatedDecoder:
    """Runs `decode_clip` in a child process, which starts with the first clip."""

    def __init__(self, decode: Decode = decode_clip) -> None:
        self._decode = decode
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def decode(self, planned: "PlannedClip", data: "DataSettings") -> tuple[np.ndarray, "ClipSpan"]:
        """As decode_clip. Raises DecodeFailure: "timeout" or "crashed" if the child had to be given up."""
        pipe = self._start()
        try:
            pipe.send((self._decode, planned, data))
            if not pipe.poll(data.decode_timeout_s):
                self.close()
                raise DecodeFailure("timeout", f"no frames after data.decode_timeout_s = {data.decode_timeout_s:g} s")
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            raise DecodeFailure("crashed", f"the decoder process ended with {self._ending()}") from error
        if isinstance(answer, DecodeFailure):
            raise answer
        return answer

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process is None:
            return
        assert self._pipe is not None
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = self._pipe = None

    def _start(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self.close()  # one that died between two clips
        ours, theirs = Pipe()
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # the kernel's death signal goes by the thread that started the child: only one that stays may ask for
        # it
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(theirs.fileno()), str(parent)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        self._pipe = ours
        theirs.close()
        try:
            ready = ours.poll(START_LIMIT_S) and ours.recv() == "ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            ending = self._ending()
            raise RuntimeError(f"the decoder process did not start: it ended with {ending}; see its error output above")
        return ours

    def _ending(self) -> str:
        """Give the child up and say how it ended."""
        assert self._process is not None and self._pipe is not None
        try:
            status = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        return signal.Signals(-status).name if status < 0 else f"status {status}"


_decoder = IsolatedDecoder()  # one child for each Ray worker process
atexit.register(_decoder.close)


def decode_clips(batch: "pa.Table", data: "DataSettings") -> Iterator["pa.Table"]:
    """map_batches over tasks, one row in, one row out: PLAN_SCHEMA -> DECODED_SCHEMA."""
    import pyarrow as pa

    from pipeline.schema import DECODED_SCHEMA

    for planned in batch.to_pylist():
        row: dict[str, Any]
        try:
            frames, span, attempts = _decode_isolated(planned, data)
            row = {**planned, **span, "frames": frames.tobytes(), "attempts": attempts}
        except DecodeFailure as failure:
            row = {**planned, "stage": "decode", "reason": failure.reason, "detail": failure.detail}
            row["attempts"] = failure.attempts
        yield pa.Table.from_pylist([row], schema=DECODED_SCHEMA)


def _decode_isolated(planned: "PlannedClip", data: "DataSettings") -> tuple[np.ndarray, "ClipSpan", int]:
    """(frames, span, attempts) of a clip, in this process's child. Raises DecodeFailure, which knows its
    attempts.

    With data.decoder = auto a clip on which the child was lost gets a second try, with PyAV alone.
    """
    try:
        return (*_decoder.decode(planned, data), 1)
    except DecodeFailure as failure:
        if data.decoder != "auto" or failure.reason not in ("crashed", "timeout"):
            raise
    try:
        return (*_decoder.decode(planned, data.model_copy(update={"decoder": "pyav"})), 2)
    except DecodeFailure as failure:
        failure.attempts = 2
        raise


def serve(descriptor: int, parent: int) -> None:
    """The child: answer requests on the pipe until it closes. `parent`: the process to die with, or 0."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            return
    pipe = Connection(descriptor)
    try:
        pipe.send("ready")
        while True:
            decode, planned, data = pipe.recv()
            signal.setitimer(signal.ITIMER_REAL, data.decode_timeout_s + GRACE_S)  # SIGALRM ends the process
            answer: Any
            try:
                answer = decode(planned, data)
            except DecodeFailure as failure:
                answer = failure
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, or has done with this child


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
