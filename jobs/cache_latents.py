"""Decode the videos and encode them into a cache of VAE latents, once.

    python jobs/cache_latents.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/cache_latents.py --recipe demo --data.path VIDEOS

Add --dry-run to see the plan and, by a few clips made on this machine and thrown away, what it would take. Expect
clips/s and an estimate of the time left as shards are committed, a
table of the clips that could not be used, and CACHE/summary.json with the counts: cached + rejected =
planned. Run it again and it says that there is nothing to do; after a crash, or with new videos, it makes
what is missing. Rejected clips are not tried again, unless with --retry-rejects, or for some reasons with
--cache.retry_rejects "[timeout, crashed]". A second job on the same cache stops with a line that says so.
"""

from pipeline.data.cache.run import build_cache, plan_cache
from pipeline.runtime.job import run_job

if __name__ == "__main__":
    run_job(build_cache, plan_cache, __doc__, {"retry-rejects": "--cache.retry_rejects=all"})
