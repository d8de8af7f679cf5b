"""CACHE -> COUNTS, STATISTICS: inspect a cache. A manifest of millions of rows stays in Arrow."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.compute as pc

from ...storage.files import READS
from .manifest import Cache
from .progress import tally
from .shards import read_latent


def counts(cache: Cache) -> dict[str, Any]:
    """Count clips by class and split, rejected clips by reason, and bytes."""
    classes: dict[str, dict[str, int]] = {}
    for entry in cache.table.group_by(["label", "split"]).aggregate([("key", "count")]).to_pylist():
        classes.setdefault(entry["label"], {})[entry["split"]] = entry["key_count"]
    return {
        "cache": cache.path,
        "clips": cache.table.num_rows,
        "bytes": pc.sum(cache.table["length"]).as_py(),
        "shards": pc.count_distinct(cache.table["shard"]).as_py(),
        "classes": dict(sorted(classes.items())),
        "rejected": cache.rejected.num_rows,
        "rejects": tally(cache.rejected["reason"]),
    }


def statistics(cache: Cache, clips: int) -> dict[str, Any]:
    """Measure `clips` clips by channel: mean and standard deviation of the scaled posterior mean, and the mean of the
    scaled posterior's standard deviation. Diffusion models expect a deviation of about 1. Raises CorruptShard.
    """
    with ThreadPoolExecutor(READS) as pool:
        latents = list(pool.map(lambda row: read_latent(cache.path, row), cache.rows.spread(clips)))
    posteriors = np.stack(latents).astype(np.float32)  # (N, 2, F, C, h, w)
    means = posteriors[:, 0] * cache.spec.scaling_factor
    noise = np.exp(0.5 * posteriors[:, 1]) * cache.spec.scaling_factor
    return {
        "clips": len(latents),
        "mean": means.mean((0, 1, 3, 4)).tolist(),
        "std": means.std((0, 1, 3, 4)).tolist(),
        "posterior_std": noise.mean((0, 1, 3, 4)).tolist(),
    }
