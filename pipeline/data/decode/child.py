"""Decode in a child process: a decoder that crashes, exits, hangs or eats memory costs its video only.

Ray would retry a task that segfaults without end, so nothing that can take a process down runs in a Ray worker. Each
worker drives one child, which decodes clip after clip and is replaced when it dies, is killed for lateness, or has
grown. Requests and spans go through a pipe. Frames, which are megabytes, go through a file in memory that both have
open: a pipe would copy them four times, in pieces of a few pages.

A child never outlives its work. It ends when the pipe to its parent closes, the kernel kills it when its parent dies,
and a timer of the kernel ends a decode that hangs while no parent is there to see it.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ...schema import ClipSpan, PlannedClip
from ...settings import DataSettings
from .decoders import decode_clip
from .fetch import DecodeFailure

log = logging.getLogger("decode")

ROOT = Path(__file__).resolve().parents[3]
START_LIMIT_S = 120  # to start a child on a busy machine
START_TRIES = 10  # starts of a child that something else kills while it starts
GRACE_S = 5  # seconds after the limit at which the kernel's timer ends a child whose parent did not
PR_SET_PDEATHSIG = 1
MIB = 2**20
# For glibc, in bytes: keep freed memory for the next clip. To return its pages and take them again costs a sixth of
# the time of decoding a small video.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 * MIB), "MALLOC_MMAP_THRESHOLD_": str(32 * MIB)}

Decode = Callable[[PlannedClip, DataSettings, str | None], tuple[np.ndarray, ClipSpan]]  # as decode_clip


class IsolatedDecoder:
    """Run `decode_clip` in a child process, which starts with the first clip."""

    def __init__(self, decode: Decode = decode_clip) -> None:
        self._decode = decode
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._frames = -1  # descriptor of the file in memory in which the child leaves the frames of a clip
        self._asked: tuple[float, DecodeFailure] | None = None  # (deadline, failure after it) of the open request

    def decode(self, planned: PlannedClip, data: DataSettings) -> tuple[np.ndarray, ClipSpan]:
        """As decode_clip. Raises DecodeFailure, also "timeout", "crashed", "killed" and "out_of_memory"."""
        self.submit(planned, data)
        return self.result()

    def submit(
        self, planned: PlannedClip, data: DataSettings, decoder: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Let the child begin with a clip; `result` waits for it. What was submitted before is given up.

        `decoder` and `timeout_s` stand in for data.decoder and data.decode_timeout_s.
        """
        self.drop()
        pipe = self.start()
        limit = timeout_s or data.decode_timeout_s
        late = DecodeFailure("timeout", f"no frames after data.decode_timeout_s = {limit:g} s")
        self._asked = (time.monotonic() + limit, late)
        with contextlib.suppress(OSError):  # a dead child: `result` says how it ended
            pipe.send((self._decode, planned, data, decoder))

    def result(self) -> tuple[np.ndarray, ClipSpan]:
        """Wait for the submitted clip; returns and raises as `decode`."""
        assert self._asked is not None and self._pipe is not None, "nothing was submitted"
        deadline, late = self._asked
        try:
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                self.close()
                raise late
            answer, grown = self._pipe.recv()
        except (EOFError, OSError) as error:  # the child closed its pipe without an answer
            status = self._give_up()
            if status == -signal.SIGALRM:  # its own timer, while no parent waited
                raise late from error
            reason = "killed" if status == -signal.SIGKILL else "crashed"
            raise DecodeFailure(reason, f"the decoder process ended with {_ending(status)}") from error
        self._asked = None
        try:
            if isinstance(answer, DecodeFailure):
                raise answer
            shape, span = answer
            frames = np.empty(shape, np.uint8)
            read = os.preadv(self._frames, [frames.data.cast("B")], 0)
            assert read == frames.nbytes, f"{read} of {frames.nbytes} bytes of frames"
            return frames, span
        finally:
            if grown:  # it leaks, or its heap is in pieces; the next clip gets a fresh one
                self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child; None while there is none."""
        return None if self._process is None else self._process.pid

    def drop(self) -> None:
        """Forget the submitted clip, if there is one."""
        if self._asked is not None:
            self.close()

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._asked = None
        if self._process is None:
            return
        assert self._pipe is not None
        self._pipe.close()
        os.close(self._frames)
        self._process.kill()
        self._process.wait()
        self._process = self._pipe = None

    def start(self) -> Connection:
        """Return the pipe to the child, after starting one if none lives. Raises RuntimeError."""
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self.close()  # a child that died between two clips
        for _ in range(START_TRIES):
            pipe = self.spawn()
            try:
                if pipe.poll(START_LIMIT_S) and pipe.recv() == "ready":
                    return pipe
            except (EOFError, OSError):
                log.debug("the decoder process ended while it started")
            status = self._give_up()
            if status != -signal.SIGKILL:
                break
        raise RuntimeError(f"the decoder process did not start: it ended with {_ending(status)}; see its output above")

    def spawn(self) -> Connection:
        """Start a child and return the pipe to it."""
        ours, theirs = Pipe()
        self._frames = _file_in_memory()
        environment = dict(MALLOC | dict(os.environ), OMP_NUM_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # the kernel's death signal follows the thread that started the child: only a thread that stays may ask for it
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        numbers = [theirs.fileno(), self._frames]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *map(str, [*numbers, parent])],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        self._pipe = ours
        theirs.close()
        return ours

    def _give_up(self) -> int:
        """Return the child's exit status, as Popen.returncode; kill it if it does not end by itself."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        return status


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


def _file_in_memory() -> int:
    """Descriptor of a file without a name."""
    if sys.platform == "linux":
        return os.memfd_create("frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(requests: int, frames: int, parent: int) -> None:
    """Be the child: answer requests on the pipe `requests` until it closes, and leave frames in the file `frames`.

    `parent`: the process to die with, or 0.
    """
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            return
    pipe = Connection(requests)
    idle = _heap()
    try:
        pipe.send("ready")
        while True:
            decode, planned, data, decoder = pipe.recv()
            limit = data.decode_memory_mb * MIB
            _limit_heap(idle + limit)
            signal.setitimer(signal.ITIMER_REAL, data.decode_timeout_s + GRACE_S)  # SIGALRM ends the process
            answer = _answer(decode, planned, data, decoder, frames)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send((answer, _heap() > idle + limit // 2))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, or needs this child no more


def _answer(decode: Decode, planned: PlannedClip, data: DataSettings, decoder: str | None, frames: int) -> Any:
    """Return (shape, span), with the frames in the file, or the DecodeFailure."""
    try:
        clip, span = decode(planned, data, decoder)
    except (DecodeFailure, MemoryError) as failure:
        if isinstance(failure, DecodeFailure) and not isinstance(failure.__cause__, MemoryError):
            return failure
        return DecodeFailure("out_of_memory", f"more than data.decode_memory_mb = {data.decode_memory_mb}")
    assert clip.dtype == np.uint8, clip.dtype
    content = np.ascontiguousarray(clip).data.cast("B")
    written = os.pwrite(frames, content, 0)
    assert written == len(content), f"{written} of {len(content)} bytes of frames"
    return clip.shape, span


def _heap() -> int:
    """Bytes of private writable memory of this process; 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _limit_heap(limit: int) -> None:
    """Let allocations fail beyond `limit` bytes: a MemoryError here, an error code or an abort in a library."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
