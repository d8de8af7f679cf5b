"""PLANNED CLIP -> FRAMES: the row function that a decoding task runs, around the child process of child.py."""

import atexit
import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .child import IsolatedDecoder
from .fetch import DecodeFailure, local_file

if TYPE_CHECKING:
    import pyarrow as pa

    from ...schema import PlannedClip
    from ...settings import DataSettings


KILLED_TRIES = 3  # of a clip whose child somebody else killed: the kernel, out of memory, or an operator


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

    from ...schema import DECODED_SCHEMA

    table = pa.Table.from_pylist([row], schema=DECODED_SCHEMA)
    if frames is None:
        return table
    ends = pa.py_buffer(np.array([0, frames.nbytes], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(frames)])
    return table.set_column(table.column_names.index("frames"), DECODED_SCHEMA.field("frames"), column)
