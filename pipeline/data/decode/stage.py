"""PLANNED CLIP -> FRAMES: the row function that a decoding task runs, around the child process of child.py."""

import atexit
import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...schema import DECODED_SCHEMA, PlannedClip
from ...settings import DataSettings
from .child import IsolatedDecoder
from .fetch import DecodeFailure, local_file

KILLED_TRIES = 3  # tries of a clip whose child something else killed: the kernel, out of memory, or an operator

isolated_decoder = IsolatedDecoder()  # the one child of this process, for every stage that reads videos
atexit.register(isolated_decoder.close)


def decode_clips(batch: pa.Table, data: DataSettings, timeout_s: float | None = None) -> Iterator[pa.Table]:
    """map_batches over tasks, one row in, one row out: PLAN_SCHEMA -> DECODED_SCHEMA.

    The child decodes the next clip while this one becomes a table, and while the caller works on it. A video on S3 is
    fetched here while the child decodes the one before: the time that S3 takes is not the decoder's. `timeout_s`
    stands in for data.decode_timeout_s.
    """
    rows = batch.to_pylist()
    fetched = _fetch(rows)
    try:
        ahead = next(fetched, None)
        _submit(ahead, data, timeout_s)
        for row in rows:
            here, ahead = ahead, next(fetched, None)
            assert here is not None
            frames, rest = _outcome(here, data, timeout_s)
            _submit(ahead, data, timeout_s)
            yield decoded_row({**row, **rest}, frames)
    finally:
        isolated_decoder.drop()
        fetched.close()


def _fetch(rows: list[PlannedClip]) -> Generator[PlannedClip | DecodeFailure]:
    """Yield the clips as the child can reach them. Raises StorageUnavailable.

    It keeps copies of the last two remote videos: one is being decoded, the other is next.
    """
    older, newer, copied, path = contextlib.ExitStack(), contextlib.ExitStack(), "", Path()
    try:
        for planned in rows:
            uri = planned["uri"]
            if "://" in uri and uri != copied:  # the clips of one video come one after another
                stack = contextlib.ExitStack()
                try:
                    path = stack.enter_context(local_file(uri))
                except DecodeFailure as failure:
                    yield failure
                    continue
                older.close()
                older, newer, copied = newer, stack, uri
            yield {**planned, "uri": str(path)} if "://" in uri else planned
    finally:
        older.close()
        newer.close()


def _submit(planned: PlannedClip | DecodeFailure | None, data: DataSettings, timeout_s: float | None) -> None:
    """Let the child start with the clip, if there is one and it was fetched."""
    if planned is not None and not isinstance(planned, DecodeFailure):
        isolated_decoder.submit(planned, data, timeout_s=timeout_s)


def _outcome(
    planned: PlannedClip | DecodeFailure, data: DataSettings, timeout_s: float | None
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return (frames, or None; further fields of the row) of the submitted clip.

    A clip whose child something else killed is tried again, a few times. With data.decoder = auto, a clip that cost
    its child otherwise gets a second try, with PyAV alone.
    """
    attempts, decoder = 1, data.decoder
    while not isinstance(planned, DecodeFailure):
        try:
            frames, span = isolated_decoder.result()
            return frames, {**span, "attempts": attempts}
        except DecodeFailure as failure:
            killed = failure.reason == "killed" and attempts < KILLED_TRIES
            lost = failure.reason in ("crashed", "timeout", "out_of_memory") and decoder == "auto"
            if not (killed or lost):
                planned = failure
                break
        attempts += 1
        decoder = "pyav" if lost else decoder
        isolated_decoder.submit(planned, data, decoder, timeout_s)
    return None, {"stage": "decode", "reason": planned.reason, "detail": planned.detail, "attempts": attempts}


def decoded_row(row: dict[str, Any], frames: np.ndarray | None) -> pa.Table:
    """Return the row as DECODED_SCHEMA; the frames are taken as they lie in memory."""
    table = pa.Table.from_pylist([row], schema=DECODED_SCHEMA)
    if frames is None:
        return table
    ends = pa.py_buffer(np.array([0, frames.nbytes], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(frames)])
    return table.set_column(table.column_names.index("frames"), DECODED_SCHEMA.field("frames"), column)
