"""Store the neural prior's output beside the latents: bridge training reads it instead of running F_eta at every step.

    python jobs/cache_prior.py --recipe demo
    ray job submit --working-dir . -- python jobs/cache_prior.py --recipe demo --run.storage /SHARED
    python jobs/finetune.py --recipe demo --bridge.cached_prior true

Needs the cache and the export of jobs/train_prior.py (or --bridge.prior_path). Expect shards/s and the time left, and
in CACHE/priors a folder named by the hash of the prior's weights, half as large as the cache. Run the job again to add
what is missing. Training refuses outputs of another cache or checkpoint.
"""

import logging

import numpy as np

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.prior_outputs import describe_prior, missing_shards, outputs_of, rows_of_shard, save_outputs
from pipeline.models.checkpoints.weights_hash import weights_hash
from pipeline.models.files.paths import shipped_path
from pipeline.runtime.connect import start_ray
from pipeline.runtime.job import run_job
from pipeline.runtime.pools import map_rows, stage_device
from pipeline.runtime.progress import Progress
from pipeline.settings import ActorResources, Settings
from pipeline.train.initial import check_prior, load_frozen_prior

log = logging.getLogger("cache_prior")


class PriorOfShards:
    """map_batches over actors: take the name of a shard, write its outputs, return the name."""

    def __init__(self, prior: str, cache: str, weights: str, resources: ActorResources) -> None:
        self._device = stage_device(resources)
        loaded, self._classes = load_frozen_prior(prior)
        self._prior = loaded.to(self._device)
        self._cache, self._weights = open_cache(cache), weights

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the outputs of the shards named in `batch`."""
        for shard in batch["shard"].tolist():
            rows = rows_of_shard(self._cache, shard)
            outputs = outputs_of(self._prior, self._classes, self._cache, rows, self._device)
            save_outputs(self._cache, self._weights, shard, outputs)
        return batch


def job(settings: Settings) -> None:
    """Store the missing outputs, a shard at a time."""
    prior_path, stage = settings.prior_export, settings.cluster.encode
    cache, weights, missing = find_missing(settings.cache_path, prior_path)
    describe_prior(cache, weights, prior_path)
    if missing:
        start_ray(settings.cluster)
        progress = Progress(len(missing), "shards")
        shards = [{"shard": shard} for shard in missing]
        stored = map_rows(
            PriorOfShards, shards, stage, prior=prior_path, cache=cache.path, weights=weights, resources=stage
        )
        for _ in stored.iter_rows():
            progress.add()
            log.info(progress.line())
    print(f"  {len(missing)} shards done now, all of {cache.path} are there; train with --bridge.cached_prior true")


def find_missing(cache_path: str, prior_path: str) -> tuple[Cache, str, list[str]]:
    """The cache, the hash of the prior's weights, and the shards without outputs. Raises UserError."""
    cache = open_cache(cache_path)
    check_prior(prior_path, cache.spec)
    weights = weights_hash(shipped_path(prior_path))
    return cache, weights, missing_shards(cache, weights)


def plan(cache_path: str, prior_path: str) -> str:
    """Say how many shards are missing."""
    cache, weights, missing = find_missing(cache_path, prior_path)
    return f"Plan: outputs of {prior_path} for {len(missing)} shards, to {cache.path}/priors/{weights}"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.cache_path, settings.prior_export), __doc__)
