"""VIDEOS -> TRAINING BATCHES without a cache (data.online): Ray Data decodes and encodes on other workers while training runs.

The stages are the cache's own, and so is the order's rule: a function of (seed, epoch, planned clips), whatever the
number of workers and restarts. Each rank runs its own stream of exactly the clips that fall to it, in order, from the step
at which it starts. What is given up against a cache: every epoch decodes and encodes again; a video that cannot be used
is found out in training, where it counts as a damaged clip (train.damaged_clips); and the plan names videos, not
their contents, so that a file replaced by another of its size goes unnoticed.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ...schema import IDENTITY, PLAN_SCHEMA, REJECT_SCHEMA, ManifestRow
from ...settings import Settings
from ..cache.info import CacheSpec
from ..cache.manifest import Cache
from ..cache.pipeline import encoded
from ..plan.clips import plan_table
from .mix import open_training_cache
from .order import epoch_order, rank_slice
from .reader import Clip, Source

BLOCK = 8  # clips of one decoding task: few, because the first in order are waited for
LEG = 4096 * BLOCK  # clips of one execution of Ray Data, whose driver keeps track of its blocks


def open_training_data(settings: Settings, wanted: CacheSpec) -> Cache:
    """What training reads: a cache, several, or with data.online the planned clips as a cache without latents.

    `wanted` is as in open_training_cache. Raises UserError.
    """
    if not settings.data.online:
        return open_training_cache(settings, wanted)
    plan = plan_table(settings.data)
    flipped = pc.if_else(plan["flip"], "flipped", "")
    keys = pc.binary_join_element_wise(plan["video"], plan["ordinal"].cast(pa.string()), flipped, "#")
    table = plan.append_column("key", keys).sort_by("key")
    classes = sorted(set(plan["label"].unique().to_pylist()) - {""})
    return Cache(settings.data.path, replace(wanted, classes=classes), table, REJECT_SCHEMA.empty_table())


def clips_in_order(
    rows: pa.Table, order: np.ndarray, settings: Settings, shape: tuple[int, ...], workers: int
) -> Iterator[tuple[ManifestRow, Clip]]:
    """The planned clips rows[order[0]], rows[order[1]], ... as batches.read_clips gives cached ones, made as they are asked
    for and somewhat ahead. `workers` run such a stream each, and share cluster.encode.actors.
    """
    plan, actors = rows.select(PLAN_SCHEMA.names), max(1, settings.cluster.encode.actors // workers)
    for leg in range(0, len(order), LEG):
        part = plan.take(pa.array(order[leg : leg + LEG]))
        blocks = [part.slice(start, BLOCK) for start in range(0, part.num_rows, BLOCK)]
        stream = encoded(blocks, settings, actors)
        stream.context.execution_options.preserve_order = True
        done = 0
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=4):
            same = batch.select(IDENTITY).equals(part.slice(done, batch.num_rows).select(IDENTITY))
            assert same, "Ray Data gave clips in another order than that in which it got them"
            done += batch.num_rows
            for row in batch.to_pylist():
                yield described(row), clip_of(row, shape)
        assert done == part.num_rows, f"{part.num_rows - done} clips did not come"


def described(row: dict[str, Any]) -> ManifestRow:
    """What a batch says of a clip; one that could not be made has neither key nor stride of its own."""
    return {**row, "key": row["key"] or row["video"], "stride": row["stride"] or 1}  # type: ignore[typeddict-item]


def clip_of(row: dict[str, Any], shape: tuple[int, ...]) -> Clip:
    """Mean and log-variance of an ENCODED_SCHEMA row, rounded to float16 as in a cache, and what is wrong with it, if anything."""
    if row["reason"] is not None:
        problem = f"clip {row['video']}: {row['reason']} ({row['detail']})"
        return torch.zeros(shape), torch.full(shape, -30.0), None, problem
    mean, logvar = torch.from_numpy(np.load(io.BytesIO(row["latent"]), allow_pickle=False)).float()
    return mean, logvar, None, None


def training_clips(
    source: Source, settings: Settings, size: int, rank: int, workers: int, start: int, stop: int
) -> Iterator[tuple[ManifestRow, Clip]]:
    """A rank's clips of global batches `start` to `stop` - 1, of `size` each, for training_batches."""
    clips = len(source.rows)
    first, last = start * size // clips, -(-stop * size // clips)
    orders = [epoch_order(source.seed, epoch, source.shares) for epoch in range(first, last)]
    stream = np.concatenate(orders)[start * size - first * clips : stop * size - first * clips]
    mine = rank_slice(size, rank, workers)
    return clips_in_order(
        source.rows.table,  # type: ignore[attr-defined]
        stream.reshape(-1, size)[:, mine.start : mine.stop].ravel(),
        settings,
        source.latent_shape,
        workers,
    )


def held_in_memory(source: Source, settings: Settings, workers: int) -> Source:
    """The same clips, made at once and kept: for the held-out ones, which are looked at again and again."""
    order = np.arange(len(source.rows))
    rows = pa.Table.from_pylist(list(source.rows), schema=PLAN_SCHEMA)
    made = list(clips_in_order(rows, order, settings, source.latent_shape, workers)) if len(order) else []
    return replace(source, rows=[row for row, _ in made], made=[clip for _, clip in made])
