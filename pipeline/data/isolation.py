"""Decoding in a child process: a decoder that crashes, exits, hangs or eats memory costs its video only.

Ray would retry a task that segfaults without end, so nothing that can take a process down runs in a Ray
worker. Each worker drives one child, used again for clip after clip and replaced when it dies, is killed for
lateness, or has grown. Requests and spans go through a pipe; frames, which are megabytes, through a file in
memory that both have open: a pipe would copy them four times, in pieces of a few pages.

A child never outlives its work: it ends when the pipe to its parent closes, the kernel kills it when its
parent dies, and a timer of the kernel's ends a decode that hangs while no parent is there to see it.
"""

import atexit
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
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.decode import DecodeFailure, decode_clip
from pipeline.data.fetch import local_file

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.schema import ClipSpan, PlannedClip
    from pipeline.settings import DataSettings

log = logging.getLogger("decode")

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120  # to start a child on a busy machine
START_TRIES = 10  # of a child that somebody else kills while it starts
GRACE_S = 5  # after which the kernel's timer ends a child whose parent did not
PR_SET_PDEATHSIG = 1
MIB = 2**20
KILLED_TRIES = 3  # of a clip whose child somebody else killed: the kernel, out of memory, or an operator

# For glibc, in bytes: keep freed memory for the next clip. Given back and taken again, its pages cost a sixth of the time
# of decoding a small video.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 * MIB), "MALLOC_MMAP_THRESHOLD_": str(32 * MIB)}

Decode = Callable[["PlannedClip", "DataSettings"], tuple[np.ndarray, "ClipSpan"]]


class IsolatedDecoder:
    """Runs `decode_clip` in a child process, which starts with the first clip."""

    def __init__(self, decode: Decode = decode_clip) -> None:
        self._decode = decode
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._frames = -1  # descriptor of the file in memory in which the child leaves the frames of a clip
        self._asked: tuple[float, float] | None = None  # (when, time limit) of the request without an answer

    def decode(self, planned: "PlannedClip", data: "DataSettings") -> tuple[np.ndarray, "ClipSpan"]:
        """As decode_clip. Raises DecodeFailure: "timeout", "crashed", "killed" or "out_of_memory" if the child
        had to be given up.
        """
        self.submit(planned, data)
        return self.result()

    def submit(self, planned: "PlannedClip", data: "DataSettings") -> None:
        """Let the child begin with a clip; `result` waits for it. What was submitted before is given up."""
        self.drop()
        pipe = self._start()
        self._asked = (time.monotonic(), data.decode_timeout_s)
        with contextlib.suppress(OSError):  # a dead child: `result` says how it ended
            pipe.send((self._decode, planned, data))

    def result(self) -> tuple[np.ndarray, "ClipSpan"]:
        """What became of the submitted clip, as `decode`."""
        assert self._asked is not None and self._pipe is not None, "nothing was submitted"
        asked, limit = self._asked
        try:
            if not self._pipe.poll(max(0.0, asked + limit - time.monotonic())):
                self.close()
                raise DecodeFailure("timeout", f"no frames after data.decode_timeout_s = {limit:g} s")
            answer, grown = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended(limit) from error
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

    def _start(self) -> Connection:
        """The pipe to the child, which is started if there is none that lives. Raises RuntimeError."""
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return self._pipe
        self.close()  # one that died between two clips
        for _ in range(START_TRIES):
            pipe = self._spawn()
            try:
                if pipe.poll(START_LIMIT_S) and pipe.recv() == "ready":
                    return pipe
            except (EOFError, OSError):
                log.debug("the decoder process ended while it started")
            status = self._give_up()
            if status != -signal.SIGKILL:
                break
        raise RuntimeError(
            f"the decoder process did not start: it ended with {_ending(status)}; see its error output above"
        )

    def _spawn(self) -> Connection:
        ours, theirs = Pipe()
        self._frames = _file_in_memory()
        environment = dict(MALLOC | dict(os.environ), OMP_NUM_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # the kernel's death signal goes by the thread that started the child: only one that stays may ask for
        # it
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

    def _ended(self, limit: float) -> DecodeFailure:
        """Why the child closed its pipe without an answer."""
        status = self._give_up()
        if status == -signal.SIGALRM:  # its own timer, while nobody waited for it
            return DecodeFailure("timeout", f"no frames after data.decode_timeout_s = {limit:g} s")
        reason = "killed" if status == -signal.SIGKILL else "crashed"
        return DecodeFailure(reason, f"the decoder process ended with {_ending(status)}")

    def _give_up(self) -> int:
        """Exit status of the child, as Popen.returncode has it; one that does not end by itself is killed."""
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


_decoder = IsolatedDecoder()  # one child for each Ray worker process
atexit.register(_decoder.close)


def decode_clips(batch: "pa.Table", data: "DataSettings") -> Iterator["pa.Table"]:
    """map_batches over tasks, one row in, one row out: PLAN_SCHEMA -> DECODED_SCHEMA.

    While a clip becomes a table here, and while that moves on, the child decodes the next one. A video on S3 is
    fetched here while the child decodes the one before: the time that S3 takes is not the decoder's.
    """
    planned = batch.to_pylist()
    copies = _Copies()
    try:
        here: PlannedClip | DecodeFailure
        for index, row in enumerate(planned):
            if index == 0:
                here = copies.near(row)
                _submit(here, data)
            ahead = copies.near(planned[index + 1]) if index + 1 < len(planned) else None
            frames, rest = _outcome(here, data)
            if ahead is not None:
                here = ahead
                _submit(here, data)
            yield _one_row({**row, **rest}, frames)
    finally:
        _decoder.drop()
        copies.close()


class _Copies:
    """Local copies of the last two remote videos: the one that is decoded, and the one that is next."""

    def __init__(self) -> None:
        self._kept: deque[tuple[str, Path, contextlib.ExitStack]] = deque()

    def near(self, planned: "PlannedClip") -> "PlannedClip | DecodeFailure":
        """The clip as the child can reach it. Raises StorageUnavailable."""
        uri = planned["uri"]
        if "://" not in uri:
            return planned
        if not self._kept or self._kept[-1][0] != uri:  # the clips of one video come one after another
            stack = contextlib.ExitStack()
            try:
                self._kept.append((uri, stack.enter_context(local_file(uri)), stack))
            except DecodeFailure as failure:
                return failure
            if len(self._kept) > 2:
                self._kept.popleft()[2].close()
        return {**planned, "uri": str(self._kept[-1][1])}

    def close(self) -> None:
        while self._kept:
            self._kept.pop()[2].close()


def _submit(planned: "PlannedClip | DecodeFailure", data: "DataSettings") -> None:
    if not isinstance(planned, DecodeFailure):
        _decoder.submit(planned, data)


def _outcome(planned: "PlannedClip | DecodeFailure", data: "DataSettings") -> tuple[np.ndarray | None, dict[str, Any]]:
    """(frames, or None; further fields of the row) of the submitted clip.

    A clip whose child was killed by somebody else is tried again, a few times. With data.decoder = auto a clip
    on which the child was lost otherwise gets a second try, with PyAV alone.
    """
    if isinstance(planned, DecodeFailure):
        return None, {"stage": "decode", "reason": planned.reason, "detail": planned.detail, "attempts": 1}
    attempts = 1
    while True:
        try:
            frames, span = _decoder.result()
            return frames, {**span, "attempts": attempts}
        except DecodeFailure as failure:
            killed = failure.reason == "killed" and attempts < KILLED_TRIES
            lost = failure.reason in ("crashed", "timeout", "out_of_memory") and data.decoder == "auto"
            if not (killed or lost):
                described = {"stage": "decode", "reason": failure.reason, "detail": failure.detail}
                return None, {**described, "attempts": attempts}
            if lost:
                data = data.model_copy(update={"decoder": "pyav"})
        attempts += 1
        _decoder.submit(planned, data)


def _one_row(row: dict[str, Any], frames: np.ndarray | None) -> "pa.Table":
    """DECODED_SCHEMA; the frames are taken as they lie in memory."""
    import pyarrow as pa

    from pipeline.schema import DECODED_SCHEMA

    table = pa.Table.from_pylist([row], schema=DECODED_SCHEMA)
    if frames is None:
        return table
    ends = pa.py_buffer(np.array([0, frames.nbytes], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(frames)])
    return table.set_column(table.column_names.index("frames"), DECODED_SCHEMA.field("frames"), column)


def serve(requests: int, frames: int, parent: int) -> None:
    """The child: answer requests on the pipe `requests` until it closes, with frames in the file `frames`.

    `parent`: the process to die with, or 0.
    """
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            return
    pipe = Connection(requests)
    idle = _heap()
    try:
        pipe.send("ready")
        while True:
            decode, planned, data = pipe.recv()
            limit = data.decode_memory_mb * MIB
            _limit_heap(idle + limit)
            signal.setitimer(signal.ITIMER_REAL, data.decode_timeout_s + GRACE_S)  # SIGALRM ends the process
            answer = _answer(decode, planned, data, frames)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send((answer, _heap() > idle + limit // 2))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone, or has done with this child


def _answer(decode: Decode, planned: "PlannedClip", data: "DataSettings", frames: int) -> Any:
    """(shape, span) with the frames in the file, or the DecodeFailure."""
    try:
        clip, span = decode(planned, data)
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
