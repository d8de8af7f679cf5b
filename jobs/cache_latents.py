"""Decode the videos and encode them into a cache of VAE latents, once.

    python jobs/cache_latents.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/cache_latents.py --recipe demo --data.path VIDEOS

Add --dry-run to see the plan and an estimate, for which a few clips are made on this machine and thrown away. Expect
clips/s and the time left as shards are committed, then a table of the rejected clips, and CACHE/summary.json with the
counts: cached + rejected = planned. Run the job again: it says that there is nothing to do, or makes what is missing
after a crash or with new videos. It tries rejected clips again with --retry-rejects only, or for some reasons with
--cache.retry_rejects "[timeout, crashed]". A second job on the same cache stops with a line that says so.
"""

from pipeline.data.cache.run import build_cache, plan_cache
from pipeline.runtime.job import run_job

if __name__ == "__main__":
    run_job(build_cache, plan_cache, __doc__, {"retry-rejects": "--cache.retry_rejects=all"})
