"""Remove what killed jobs left in the cache: tars without a manifest part, half-written files and unfinished uploads.

    python jobs/gc_cache.py --recipe demo --run.storage STORAGE --dry-run
    ray job submit --working-dir . -- python jobs/gc_cache.py --recipe demo --run.storage /SHARED

With --dry-run it lists what it would remove. It does not run beside a caching job, and spares what is younger than
cache.gc_after_hours. It reports a manifest part whose tar is gone, with status 1, and leaves it to
jobs/verify_cache.py.
"""

from datetime import UTC, datetime

from pipeline.data.cache.lease import only_writer
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.verify import Orphan, find_orphans, remove_orphans
from pipeline.errors import JobFailed
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def job(settings: Settings) -> None:
    """Remove orphans while no other job writes. Raises JobFailed if committed shards are gone."""
    path = open_cache(settings.cache_path).path
    with only_writer(path):
        orphans, missing = find_orphans(path, settings.cache.gc_after_hours * 3600)
        print(listed(orphans))
        remove_orphans(orphans)
    print(f"{path}: {len(orphans)} orphans removed, {size(orphans):.1f} MiB")
    if missing:
        raise JobFailed(complaint(path, missing))


def plan(settings: Settings) -> str:
    """List the orphans."""
    path = open_cache(settings.cache_path).path
    orphans, missing = find_orphans(path, settings.cache.gc_after_hours * 3600)
    text = f"{listed(orphans)}\nPlan: remove {len(orphans)} orphans, {size(orphans):.1f} MiB, from {path}"
    return f"{text}\n{complaint(path, missing)}" if missing else text


def size(orphans: list[Orphan]) -> float:
    """MiB of all orphans."""
    return sum(orphan.size for orphan in orphans) / 2**20


def listed(orphans: list[Orphan]) -> str:
    """A line for each orphan: time, size and address."""
    return "\n".join(
        f"{datetime.fromtimestamp(orphan.modified, UTC):%Y-%m-%d %H:%M} UTC {orphan.size:>12} bytes  {orphan.address}"
        + (" (unfinished upload)" if orphan.upload else "")
        for orphan in orphans
    )


def complaint(path: str, missing: list[str]) -> str:
    """Name the first of the committed shards that are gone, and the remedy."""
    return (
        f"{path}: {len(missing)} committed shards are gone, for example shards/{missing[0]}; jobs/verify_cache.py "
        "--repair takes them back, and jobs/cache_latents.py makes their clips again"
    )


if __name__ == "__main__":
    run_job(job, plan, __doc__)
