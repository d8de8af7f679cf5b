"""Remove what killed jobs left in the cache: tars without a manifest part, half-written files and unfinished uploads.

    python jobs/gc_cache.py --recipe demo --run.storage STORAGE --dry-run
    ray job submit --working-dir . -- python jobs/gc_cache.py --recipe demo --run.storage /SHARED

--dry-run lists what the job would remove. It does not run beside a caching job, and keeps everything younger than
cache.gc_after_hours. If the tar of a manifest part is gone, it says so, exits with status 1, and leaves the part to
jobs/verify_cache.py.
"""

from datetime import UTC, datetime

from pipeline.data.cache.lease import only_writer
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.verify import Orphan, find_orphans, remove_orphans
from pipeline.errors import JobFailed
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def list_orphans(path: str, older_than_h: float) -> tuple[list[Orphan], str, str]:
    """Print a line for each orphan; return them, their number and size in words, and a complaint about lost shards."""
    orphans, missing = find_orphans(path, older_than_h * 3600)
    for one in orphans:
        when = f"{datetime.fromtimestamp(one.modified, UTC):%Y-%m-%d %H:%M} UTC"
        print(f"{when} {one.size:>12} bytes  {one.address}{' (unfinished upload)' if one.upload else ''}")
    found = f"{len(orphans)} orphans, {sum(one.size for one in orphans) / 2**20:.1f} MiB"
    if not missing:
        return orphans, found, ""
    complaint = f"{path}: {len(missing)} committed shards are gone, for example shards/{missing[0]}; "
    remedy = "jobs/verify_cache.py --repair takes them back, and jobs/cache_latents.py makes their clips again"
    return orphans, found, complaint + remedy


def job(settings: Settings) -> None:
    """Remove orphans while no other job writes. Raises JobFailed if committed shards are gone."""
    path = open_cache(settings.cache_path).path
    with only_writer(path):
        orphans, found, complaint = list_orphans(path, settings.cache.gc_after_hours)
        remove_orphans(orphans)
    print(f"{path}: removed {found}")
    if complaint:
        raise JobFailed(complaint)


def plan(path: str, older_than_h: float) -> str:
    """List the orphans."""
    _, found, complaint = list_orphans(open_cache(path).path, older_than_h)
    return f"Plan: remove {found}, from {path}\n{complaint}".rstrip()


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.cache_path, settings.cache.gc_after_hours), __doc__)
