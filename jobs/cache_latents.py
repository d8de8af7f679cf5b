"""Decode the videos and encode them into a cache of VAE latents, once.

    python jobs/cache_latents.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/cache_latents.py --recipe demo --data.path VIDEOS

Add --dry-run to see the plan. Expect clips/s and an estimate of the time left as shards are committed, a
table of the clips that could not be used, and CACHE/summary.json with the counts: cached + rejected =
planned. Run it again and it says that there is nothing to do; after a crash, or with new videos, it makes
what is missing.
"""

import sys

from pipeline.cli import run_job
from pipeline.config import Options
from pipeline.data.cache import build_cache, plan_cache
from pipeline.settings import Settings


def job(settings: Settings, options: Options) -> None:
    build_cache(settings)


def plan(settings: Settings, options: Options) -> str:
    return plan_cache(settings)


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
