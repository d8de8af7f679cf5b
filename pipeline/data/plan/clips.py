"""VIDEOS -> PLANNED CLIPS. All in Arrow: there may be millions."""

import logging
import sys
from collections.abc import Iterator
from itertools import groupby, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ...schema import PLAN_SCHEMA, TEST, TRAIN, PlannedClip
from ...settings import DataSettings
from ...storage.files import exists
from .sources import SOURCES, Video, Videos
from .tables import BATCH, conform
from .windows import unit_hashes

log = logging.getLogger("plan")

VIDEO_SCHEMA = pa.schema([PLAN_SCHEMA.field(name) for name in ("uri", "video", "size", "split", "label", "caption")])
BLANK: dict[str, str | int] = {"size": -1, "label": "", "caption": ""}  # where a source does not say; its split is null


def plan_clips(data: DataSettings) -> Iterator[PlannedClip]:
    """Every clip that the source gives under these settings, in the source's order. Raises UserError."""
    for batch in plan_table(data).to_batches(BATCH):
        yield from batch.to_pylist()


def plan_table(data: DataSettings) -> pa.Table:
    """The planned clips as an Arrow table of PLAN_SCHEMA. Raises UserError.

    clips_per_video rows a video; with data.flip each clip of a training video is followed by its mirrored one.
    """
    if not exists(data.path):
        raise UserError(f"data.path = {data.path}: no such folder; give the folder of the videos with --data.path")
    list_videos, expected = SOURCES[data.source]
    videos = _videos(list_videos(data), data)
    if not videos.num_rows:
        raise UserError(f"data.path = {data.path}: holds no videos for data.source = {data.source}; {expected}")
    videos = videos.set_column(3, "split", _split(videos, data.holdout_fraction))
    return pa.Table.from_batches([_clips(batch, data) for batch in videos.to_batches(BATCH)], PLAN_SCHEMA)


def _clips(videos: pa.RecordBatch, data: DataSettings) -> pa.RecordBatch:
    """The clips of some videos."""
    count = data.clips_per_video
    flips = np.asarray(pc.equal(videos["split"], TRAIN)) & data.flip
    each = count * (1 + flips)  # clips of each video
    row = np.repeat(np.arange(len(each)), each)
    place = np.arange(len(row)) - np.repeat(np.cumsum(each) - each, each)  # 0, 1, ... within a video
    variants = 1 + flips[row]
    if len(row) != len(each):
        videos = videos.take(pa.array(row))
    ordinal, flip = pa.array(place // variants, pa.int32()), pa.array(place % variants == 1, pa.bool_())
    clips = pa.array(np.full(len(row), count, np.int32))
    return pa.RecordBatch.from_arrays([*videos.columns, ordinal, clips, flip], schema=PLAN_SCHEMA)


def _videos(videos: Videos, data: DataSettings) -> pa.Table:
    """The source's first data.max_videos videos, each name once, as VIDEO_SCHEMA."""
    parts, left = [VIDEO_SCHEMA.empty_table()], data.max_videos or sys.maxsize
    for part in _tables(videos):
        parts.append(part.slice(0, left))
        left -= parts[-1].num_rows
        if not left:
            break
    table = pa.concat_tables(parts)
    found = distinct(table, table["video"])
    if repeated := table.num_rows - found.num_rows:
        log.warning("%d videos of %s come more than once; the first counts", repeated, data.path)
    return found


def distinct(table: pa.Table, names: pa.ChunkedArray) -> pa.Table:
    """The first row of each name, in order; `names` has a name for each row."""
    if pc.count_distinct(names).as_py() == table.num_rows:
        return table
    codes = np.concatenate([np.asarray(chunk.indices) for chunk in names.dictionary_encode().chunks])
    return table.take(pa.array(np.sort(np.unique(codes, return_index=True)[1])))


def _tables(videos: Videos) -> Iterator[pa.Table]:
    """The source's videos as tables of VIDEO_SCHEMA, in its order."""
    for plain, group in groupby(videos, lambda video: isinstance(video, Video)):
        if plain:
            while part := list(map(vars, islice(group, BATCH))):
                yield pa.Table.from_pylist(part, schema=VIDEO_SCHEMA)
        else:
            yield from (conform(table, VIDEO_SCHEMA, BLANK) for table in group)


def _split(videos: pa.Table, fraction: float) -> pa.ChunkedArray:
    """The split of each video; those without one get it by a hash of their name: `fraction` of them are held out.

    It depends on neither order nor number, so videos added later move none. As long as there are two, at
    least one is held out (if fraction > 0) and at least one is not (if fraction < 1). Raises UserError.
    """
    given = pc.if_else(pc.equal(videos["split"], ""), None, videos["split"])
    if wrong := set(given.unique().to_pylist()) - {TRAIN, TEST, None}:
        raise UserError(f"split = {min(wrong)!r}: expected {TRAIN} or {TEST}, or nothing, for data.holdout_fraction")
    free = np.flatnonzero(np.asarray(pc.is_null(given)))
    if not len(free):
        return given
    names = videos["video"] if len(free) == videos.num_rows else videos["video"].take(pa.array(free))
    values = unit_hashes(name for chunk in names.chunks for name in chunk.to_pylist())
    held = values < fraction
    if len(free) >= 2 and not held.any() and fraction > 0:
        held[values.argmin()] = True
    if len(free) >= 2 and held.all() and fraction < 1:
        held[values.argmax()] = False
    test = np.zeros(videos.num_rows, bool)
    test[free[held]] = True
    return pc.coalesce(given, pc.if_else(pa.array(test), TEST, TRAIN))
