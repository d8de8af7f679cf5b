"""VIDEOS -> TRAINING BATCHES without a cache (data.online): Ray Data decodes and encodes while training runs.

The stages are the cache's own, and the order follows the same rule: it depends on seed, epoch and planned clips, not
on the number of workers or restarts. Each rank runs a stream of exactly its own clips, in order, from the step at which
it starts. A cache has three advantages. Here every epoch decodes and encodes again. A video that cannot be used is
found in training, where it counts as a damaged clip (train.damaged_clips). And the plan names videos, not their
contents, so nobody notices when a file is replaced by another of its size.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ...schema import IDENTITY, PLAN_SCHEMA, REJECTED_SCHEMA, ManifestRow
from ...settings import DataSettings
from ..cache.info import CacheSpec
from ..cache.manifest import Cache
from ..plan.clips import plan_table
from .order import epoch_order, rank_slice
from .reader import Clip, Source, damaged_clip

BLOCK = 8  # clips of one decoding task: few, because the first in order are waited for
LEG = 4096 * BLOCK  # clips of one execution of Ray Data, whose driver keeps track of its blocks

Stages = Callable[[list[pa.Table]], Any]  # planned clips -> a Ray data set of ENCODED_SCHEMA rows, as `encoded` makes


def planned_cache(data: DataSettings, wanted: CacheSpec) -> Cache:
    """The planned clips as a cache without latents. Raises UserError."""
    plan = plan_table(data)
    flipped = pc.if_else(plan["flip"], "flipped", "")
    keys = pc.binary_join_element_wise(plan["video"], plan["ordinal"].cast(pa.string()), flipped, "#")
    table = plan.append_column("key", keys).sort_by("key")
    classes = sorted(set(plan["label"].unique().to_pylist()) - {""})
    return Cache(data.path, replace(wanted, classes=classes), table, REJECTED_SCHEMA.empty_table())


def made_while_training(source: Source, stages: Stages, size: int, rank: int, workers: int, steps: range) -> Source:
    """The same source for `training_batches` of these arguments: its clips are made as they are asked for."""
    clips = len(source.rows)
    first, last = steps.start * size // clips, -(-steps.stop * size // clips)
    orders = [epoch_order(source.seed, epoch, source.shares) for epoch in range(first, last)]
    stream = np.concatenate(orders)[steps.start * size - first * clips : steps.stop * size - first * clips]
    mine = rank_slice(size, rank, workers)
    made = clips_in_order(source, stages, stream.reshape(-1, size)[:, mine.start : mine.stop].ravel())
    return replace(source, made=lambda positions: list(islice(made, len(positions))))


def held_in_memory(source: Source, stages: Stages) -> Source:
    """The same source, its clips made at once and kept: for held-out clips, which are looked at again and again."""
    made = list(clips_in_order(source, stages, np.arange(len(source.rows))))
    return replace(source, made=lambda positions: [made[position] for position in positions])


def clips_in_order(source: Source, stages: Stages, order: np.ndarray) -> Iterator[tuple[ManifestRow, Clip]]:
    """The clips source.rows[order[0]], source.rows[order[1]], ..., made a little before they are asked for."""
    plan = source.rows.table.select(PLAN_SCHEMA.names)
    for leg in range(0, len(order), LEG):
        part = plan.take(pa.array(order[leg : leg + LEG]))
        stream = stages([part.slice(start, BLOCK) for start in range(0, part.num_rows, BLOCK)])
        stream.context.execution_options.preserve_order = True
        done = 0
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=4):
            same = batch.select(IDENTITY).equals(part.slice(done, batch.num_rows).select(IDENTITY))
            assert same, "Ray Data gave clips in another order than that in which it got them"
            done += batch.num_rows
            for row in batch.to_pylist():
                # a clip that could not be made has neither key nor stride of its own
                yield (
                    row | {"key": row["key"] or row["video"], "stride": row["stride"] or 1},
                    clip_of(row, source.latent_shape),
                )
        assert done == part.num_rows, f"{part.num_rows - done} clips did not come"


def clip_of(row: dict[str, Any], shape: Sequence[int]) -> Clip:
    """The clip of an ENCODED_SCHEMA row, rounded to float16 as in a cache."""
    if row["reason"] is not None:
        return damaged_clip(shape, f"clip {row['video']}: {row['reason']} ({row['detail']})")
    return Clip(*torch.from_numpy(np.load(io.BytesIO(row["latent"]), allow_pickle=False)).float())
