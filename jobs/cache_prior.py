"""Store the neural prior's output beside the latents: bridge training reads it instead of running F_eta at every step.

    python jobs/cache_prior.py --recipe demo
    ray job submit --working-dir . -- python jobs/cache_prior.py --recipe demo --run.storage /SHARED
    python jobs/finetune.py --recipe demo --bridge.cached_prior true

Needs the cache and the export of jobs/train_prior.py (or --bridge.prior_path). Expect shards/s and the time left, and
in CACHE/priors a folder named by the hash of the prior's weights, half as large as the cache. Run again, it does only
what is missing; training refuses outputs of another cache or checkpoint.
"""

import logging
from typing import Any

import numpy as np

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.prior_outputs import describe_prior, missing_shards, outputs_of, rows_of_shard, save_outputs
from pipeline.models.checkpoints.weights_hash import weights_hash
from pipeline.models.files.paths import shipped_path
from pipeline.runtime.connect import start_ray
from pipeline.runtime.job import run_job
from pipeline.runtime.pools import map_rows, stage_device
from pipeline.runtime.progress import Progress
from pipeline.settings import Settings
from pipeline.train.initial import check_prior, load_frozen_prior

log = logging.getLogger("cache_prior")


class PriorOfShards:
    """map_batches over actors: take the name of a shard, write its outputs, return the name."""

    def __init__(self, settings: Settings, weights: str) -> None:
        self._device = stage_device(settings.cluster.encode)
        prior, self._classes = load_frozen_prior(settings.prior_export)
        self._prior = prior.to(self._device)
        self._cache, self._weights = open_cache(settings.cache_path), weights

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for shard in batch["shard"]:
            rows = rows_of_shard(self._cache, str(shard))
            outputs = outputs_of(self._prior, self._classes, self._cache, rows, self._device)
            save_outputs(self._cache, self._weights, str(shard), outputs)
        return {"shard": np.asarray(batch["shard"])}


def job(settings: Settings) -> None:
    """Store what is missing, a shard at a time."""
    cache, weights, missing = find_missing(settings)
    describe_prior(cache, weights, settings.prior_export)
    if missing:
        start_ray(settings.cluster)
        shards = [{"shard": shard} for shard in missing]
        progress = Progress(len(missing), "shards")
        for _ in map_rows(
            PriorOfShards, shards, settings.cluster.encode, settings=settings, weights=weights
        ).iter_rows():
            progress.add()
            log.info(progress.line())
    print(f"  {len(missing)} shards done now, all of {cache.path} are there; train with --bridge.cached_prior true")


def find_missing(settings: Settings) -> tuple[Cache, str, list[str]]:
    """The cache, the hash of the prior's weights, and the shards without outputs. Raises UserError."""
    cache = open_cache(settings.cache_path)
    check_prior(settings.prior_export, cache.spec)
    weights = weights_hash(shipped_path(settings.prior_export))
    return cache, weights, missing_shards(cache, weights)


def plan(settings: Settings) -> str:
    """Say how many shards are missing."""
    cache, weights, missing = find_missing(settings)
    return f"Plan: outputs of {settings.prior_export} for {len(missing)} shards, to {cache.path}/priors/{weights}"


if __name__ == "__main__":
    run_job(job, plan, __doc__)
