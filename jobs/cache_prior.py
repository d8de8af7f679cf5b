"""Store the neural prior's output beside the latents: bridge training then reads it instead of running F_eta every step.

    python jobs/cache_prior.py --recipe demo
    ray job submit --working-dir . -- python jobs/cache_prior.py --recipe demo --run.storage /SHARED
    python jobs/finetune.py --recipe demo --bridge.cached_prior true

Needs the cache and the export of jobs/train_prior.py (or --bridge.prior_path). Expect shards/s and the time left, and in
CACHE/priors a folder named by the hash of the prior's weights, as large as half of the cache. Run again it does what is
missing only; training refuses outputs of another cache or checkpoint.
"""

import logging
import sys
import time
from typing import Any

import numpy as np

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.prior_outputs import describe_prior, missing_shards, outputs_of, rows_of_shard, save_outputs
from pipeline.models.checkpoints.weights_hash import weights_hash
from pipeline.models.files.paths import shipped_path
from pipeline.runtime.connect import bars_for_people_only, start_ray
from pipeline.runtime.job import run_job
from pipeline.runtime.placement import selector
from pipeline.settings import Options, Settings
from pipeline.train.initial import check_prior, load_frozen_prior

log = logging.getLogger("cache_prior")


class PriorOfShards:
    """map_batches over actors: one shard's name in, its outputs written, the name out."""

    def __init__(self, settings: Settings, weights: str) -> None:
        self._device = "cuda" if settings.cluster.encode.num_gpus > 0 else "cpu"
        prior, self._classes = load_frozen_prior(settings)
        self._prior = prior.to(self._device)
        self._cache, self._weights = open_cache(settings.cache_path), weights

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for shard in batch["shard"]:
            rows = rows_of_shard(self._cache, str(shard))
            outputs = outputs_of(self._prior, self._classes, self._cache, rows, self._device)
            save_outputs(self._cache, self._weights, str(shard), outputs)
        return {"shard": np.asarray(batch["shard"])}


def job(settings: Settings, options: Options) -> None:
    cache, weights, missing = standing(settings)
    describe_prior(cache, weights, settings.prior_export)
    if missing:
        import ray.data
        from ray.data import ActorPoolStrategy

        start_ray(settings)
        bars_for_people_only()
        resources = settings.cluster.encode
        done = ray.data.from_items(
            [{"shard": shard} for shard in missing], override_num_blocks=len(missing)
        ).map_batches(
            PriorOfShards,
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=min(resources.actors, len(missing))),
            fn_constructor_kwargs={"settings": settings, "weights": weights},
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            label_selector=selector(settings, "encode"),
        )
        started = time.monotonic()
        for count, _ in enumerate(done.iter_rows(), 1):
            rate = count / (time.monotonic() - started)
            log.info(
                "%d of %d shards, %.2f shards/s, %.0f s to go", count, len(missing), rate, (len(missing) - count) / rate
            )
    print(f"  {len(missing)} shards done now, all of {cache.path} are there; train with --bridge.cached_prior true")


def standing(settings: Settings) -> tuple[Cache, str, list[str]]:
    """The cache, the hash of the prior's weights, and the shards to do. Raises UserError."""
    cache = open_cache(settings.cache_path)
    weights = weights_hash(shipped_path(check_prior(settings, cache.info)))
    return cache, weights, missing_shards(cache, weights)


def plan(settings: Settings, options: Options) -> str:
    cache, weights, missing = standing(settings)
    return f"Plan: outputs of {settings.prior_export} for {len(missing)} shards, to {cache.path}/priors/{weights}"


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
