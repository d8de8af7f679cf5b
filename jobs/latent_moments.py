"""Compute a cache's moments E[z0] and tr(Cov[z0])/d, from which diffusion sampling can start (CIL's Analytic-Init).

    python jobs/latent_moments.py --recipe demo
    ray job submit --working-dir . -- python jobs/latent_moments.py --recipe demo --run.storage /SHARED

Reads the training clips of the cache once, in as many tasks as fit the cluster. Expect progress lines and
STORAGE/NAME/moments/{mean.npy,moments.json}. Then sample from them:

    python jobs/sample.py --recipe demo --sample.analytic_init STORAGE/NAME/moments --sample.start 0.9
"""

import functools
import logging

import numpy as np
import pyarrow as pa

from pipeline.data.cache.manifest import Rows, open_cache
from pipeline.data.cache.moments import Moments, merge, read_moments, save_moments
from pipeline.errors import UserError
from pipeline.runtime.connect import bars_for_people_only, start_ray
from pipeline.runtime.job import run_job
from pipeline.runtime.progress import Progress
from pipeline.schema import TRAIN
from pipeline.settings import Settings

AT_ONCE = 64  # clips whose latents a task holds: 64 of 16 x 256 x 256 are 16 MiB
log = logging.getLogger("latent_moments")


def job(settings: Settings) -> None:
    """Sum the moments over all training clips. Raises UserError if there are none."""
    cache = open_cache(settings.cache_path)
    rows = cache.select(TRAIN)
    if not rows:
        raise UserError(f"{cache.path}: holds no training clips; lower data.holdout_fraction and cache again")
    import ray.data

    start_ray(settings.cluster)
    bars_for_people_only()
    part = functools.partial(partial_moments, path=cache.path, scaling_factor=cache.spec.scaling_factor)
    # A batch of rows becomes one row of moments: latents never leave the task that reads them.
    parts = ray.data.from_arrow(rows.table).repartition(target_num_rows_per_block=AT_ONCE)
    progress, total = Progress(len(rows), "clips"), None
    for row in parts.map_batches(part, batch_size=AT_ONCE, batch_format="pyarrow").iter_rows():
        found = Moments(row["clips"], np.asarray(row["mean"]).reshape(cache.spec.latent_shape), row["squares"])
        total = found if total is None else merge(total, found)
        progress.add(found.clips)
        log.info(progress.line())
    assert total is not None and total.clips == len(rows)
    folder = f"{settings.run.folder}/moments"
    save_moments(folder, total, cache.spec.fingerprint)
    print(f"  {total.clips} clips: mean {total.mean.mean():.4f}, tr(Cov)/d {total.variance:.4f}, in {folder}")


def partial_moments(rows: pa.Table, path: str, scaling_factor: float) -> dict[str, np.ndarray]:
    """map_batches: turn up to AT_ONCE manifest rows into one row, their moments."""
    found = read_moments(path, Rows(rows), scaling_factor)
    return {"clips": np.array([found.clips]), "mean": found.mean.reshape(1, -1), "squares": np.array([found.squares])}


def plan(cache_path: str, run_folder: str) -> str:
    """Say how much there is to read."""
    cache = open_cache(cache_path)
    return f"Plan: read {len(cache.select(TRAIN))} training clips of {cache.path}, write {run_folder}/moments"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.cache_path, settings.run.folder), __doc__)
