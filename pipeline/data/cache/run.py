"""Run the caching job: find what is missing, send it through the stages of pipeline.py, say how far it is, judge the rejected clips."""

import logging
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from ...errors import JobFailed
from ...runtime.connect import start_ray
from ...runtime.metrics import count_cached
from ...runtime.placement import check_room
from ...runtime.progress import Progress
from ...schema import IDENTITY, TRAIN
from ...settings import Settings
from ...storage.files import exists, read_json, write_json
from ..decode.decoders import check_decoder
from ..plan.clips import plan_table
from .estimate import describe_estimate, describe_online, estimate
from .info import CacheSpec, check_same, read_spec, resolve_spec, write_spec
from .lease import Lease, only_writer
from .manifest import Cache, committed_parts, open_cache
from .pipeline import chain
from .progress import CacheProgress, cache_progress, counts_of, tally

if TYPE_CHECKING:
    import ray.data


__all__ = ["Cache", "build_cache", "open_cache", "plan_cache", "tally"]


log = logging.getLogger("cache")


PROGRESS_S = 5.0


MIB = 2**20


def build_cache(settings: Settings) -> dict[str, Any]:
    """Cache every planned clip that is not cached or rejected yet. Returns what it writes to
    CACHE/summary.json.

    Raises UserError, before anything is written, for a wrong source or VAE and for a cache that was made with
    other settings; JobFailed, when all is committed, if more than cache.max_reject_fraction of the clips were
    rejected.
    """
    path = settings.cache_path
    spec, plan, before = _survey(settings)
    if before.pending.num_rows:
        parts = committed_parts(path)
        with only_writer(path) as lock:
            if committed_parts(path) != parts:  # by a job that ended since
                spec, plan, before = _survey(settings)
            summary = _make(spec, plan, before, settings, lock)
    else:
        log.info("nothing to do: %d clips already cached in %s", before.cached.num_rows, path)
        summary_path = f"{path}/summary.json"
        summary = read_json(summary_path) if exists(summary_path) else {}
        counts = counts_of(path, before)
        if any(summary.get(name) != value for name, value in counts.items()):
            summary |= counts
            write_json(summary_path, summary)
    _judge(summary, settings)
    return {**summary, "clips_this_run": before.pending.num_rows}


def _make(spec: CacheSpec, plan: pa.Table, before: CacheProgress, settings: Settings, lock: Lease) -> dict[str, Any]:
    """Cache the pending clips; returns the summary, which is also written."""
    started = time.monotonic()
    path, made = settings.cache_path, before.pending.num_rows
    write_spec(path, replace(spec, classes=_classes(plan)))
    log.info("%d clips to cache into %s (%s)", made, path, _known(before))
    start_ray(settings.cluster)
    check_room("decode", settings.cluster.decode, 1, "the decoding tasks")
    check_room("encode", settings.cluster.encode, 1, "the encoding actors")
    _consume(chain(before.pending, settings, spec), made, settings, lock)
    after = cache_progress(plan, path)
    assert not after.pending.num_rows, f"{after.pending.num_rows} clips are neither cached nor rejected"
    seconds = time.monotonic() - started
    summary = {
        **counts_of(path, after),
        "clips_this_run": made,
        "seconds": seconds,
        "clips_per_second": made / seconds,
        "frames_per_second": made * settings.data.frames / seconds,
    }
    write_json(f"{path}/summary.json", summary)
    cached, rejected = after.cached.num_rows, after.rejected.num_rows
    log.info("%d clips cached in %s, %d rejected, %.0f s", cached, path, rejected, seconds)
    return summary


def _with_retries(progress: CacheProgress, wanted: Literal["all"] | list[str]) -> CacheProgress:
    """Clips whose reject cache.retry_rejects asks to try again count as pending."""
    reasons = progress.rejected["reason"]
    if not wanted:
        return progress
    if wanted == "all":
        again = pc.is_valid(reasons)
    else:
        again = pc.is_in(reasons, value_set=pa.array(wanted, pa.string()))
        if unknown := set(wanted) - set(reasons.unique().to_pylist()):
            log.warning("cache.retry_rejects: no clip was rejected as %s", " or ".join(sorted(unknown)))
    rejected, retried = progress.rejected.filter(pc.invert(again)), progress.rejected.filter(again)
    pending = pa.concat_tables([progress.pending, retried.select(progress.pending.column_names)])
    return progress._replace(rejected=rejected, pending=pending)


def _consume(commits: "ray.data.Dataset", clips: int, settings: Settings, lock: Lease) -> None:
    """Run the chain, and say every few seconds how far it is."""
    progress, size = Progress(clips, "clips", PROGRESS_S), 0
    reasons: Counter[str] = Counter()
    for row in commits.iter_rows():
        lock.check()
        progress.add(row["clips"] + len(row["reasons"]))
        reasons.update(row["reasons"])
        count_cached(settings.run.name, row["clips"], row["reasons"])
        size += row["bytes"]
        if progress.due():
            frames = f"{progress.rate * settings.data.frames:.0f} frames/s"
            log.info("%s", progress.line(frames, f"{size / MIB:.1f} MiB", _named(reasons)))


def _named(reasons: Counter[str]) -> str:
    """ "3 rejected (2 timeout, 1 crashed)"."""
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} rejected ({each})" if each else "0 rejected"


def plan_cache(settings: Settings) -> str:
    """What build_cache would do, and what it would take, in words: a few clips are made to tell. Writes nothing.

    Raises UserError.
    """
    spec, plan, progress = _survey(settings)
    splits = ", ".join(f"{count} {split}" for split, count in tally(plan["split"]).items())
    size = spec.clip_bytes * progress.pending.num_rows / MIB
    text = (
        f"Plan: {progress.planned} clips ({splits}) in {len(_classes(plan))} classes "
        f"from {settings.data.path}\n"
        f"  {_known(progress)}, {progress.pending.num_rows} to do: {size:.1f} MiB of latents {spec.latent_shape} in "
        f"{-(-progress.pending.num_rows // settings.cache.shard_clips)} shards\n"
        f"  to {settings.cache_path}"
    )
    if not progress.pending.num_rows:
        return text
    found, train = estimate(progress.pending, settings, spec), settings.train
    epochs = train.steps * train.global_batch / max(1, pc.sum(pc.equal(plan["split"], TRAIN)).as_py())
    return f"{text}\n{describe_estimate(found)}\n{describe_online(found, epochs)}"


def _survey(settings: Settings) -> tuple[CacheSpec, pa.Table, CacheProgress]:
    """The cache's spec; IDENTITY, split and label of the planned clips; and which are cached, rejected or pending.

    Raises UserError.
    """
    path = settings.cache_path
    check_decoder(settings.data)
    plan = plan_table(settings.data)
    found = read_spec(path)
    spec = resolve_spec(settings.data, settings.vae, settings.text)
    if found is not None:
        check_same(path, found, spec)
    progress = cache_progress(plan, path)
    return spec, plan.select([*IDENTITY, "split", "label"]), _with_retries(progress, settings.cache.retry_rejects)


def _judge(summary: dict[str, Any], settings: Settings) -> None:
    """Show the rejected clips; raise JobFailed if there are too many."""
    if not summary["rejected"]:
        return
    print_rejected(summary["rejects"], f"{summary['rejected']} of {summary['planned']} clips rejected")
    share = summary["rejected"] / summary["planned"]
    if share > settings.cache.max_reject_fraction:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items())
        raise JobFailed(
            f"{share:.1%} of the clips were rejected, more than cache.max_reject_fraction = "
            f"{settings.cache.max_reject_fraction:g} ({reasons}); the {summary['cached']} good ones are in "
            f"{summary['cache']}, rejects/ there names the others; raise the limit to accept that"
        )


def print_rejected(reasons: dict[str, int], title: str) -> None:
    """The table of reasons."""
    table = Table("reason", "clips", title=title, title_justify="left")
    for reason, count in reasons.items():
        table.add_row(reason, str(count))
    Console().print(table)


def _known(progress: CacheProgress) -> str:
    return f"{progress.cached.num_rows} cached, {progress.rejected.num_rows} rejected before"


def _classes(plan: pa.Table) -> list[str]:
    return sorted(set(plan["label"].unique().to_pylist()) - {""})
