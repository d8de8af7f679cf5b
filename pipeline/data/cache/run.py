"""Run the caching job: find missing clips, send them through pipeline.py, log progress, judge the rejected clips."""

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
from .manifest import committed_parts
from .pipeline import MIB, chain
from .progress import CacheProgress, cache_progress, counts_of, describe_counts, tally

if TYPE_CHECKING:
    import ray.data

log = logging.getLogger("cache")

PROGRESS_S = 5.0


def build_cache(settings: Settings) -> dict[str, Any]:
    """Cache every planned clip that is neither cached nor rejected yet. Returns the content of CACHE/summary.json.

    Raises UserError, before anything is written, for a wrong source or VAE and for a cache that was made with other
    settings. Raises JobFailed, after all is committed, if more than cache.max_reject_fraction of the clips were
    rejected.
    """
    path = settings.cache_path
    summary, (spec, plan, before) = None, _survey(settings)
    if before.pending.num_rows:
        parts = committed_parts(path)
        with only_writer(path) as lease:
            if committed_parts(path) != parts:  # by a job that ended since, and may have left nothing
                spec, plan, before = _survey(settings)
            if before.pending.num_rows:
                summary = _make(spec, plan, before, settings, lease)
    if summary is None:
        log.info("nothing to do: %d clips already cached in %s", before.cached.num_rows, path)
        address = f"{path}/summary.json"
        earlier = read_json(address) if exists(address) else {}
        summary = earlier | counts_of(path, before)
        if summary != earlier:
            write_json(address, summary)
    _judge(summary, settings.cache.max_reject_fraction)
    return {**summary, "clips_this_run": before.pending.num_rows}


def _make(spec: CacheSpec, plan: pa.Table, before: CacheProgress, settings: Settings, lease: Lease) -> dict[str, Any]:
    """Cache the pending clips; write the summary and return it."""
    started = time.monotonic()
    path, made, cluster = settings.cache_path, before.pending.num_rows, settings.cluster
    write_spec(path, replace(spec, classes=_classes(plan)))
    log.info("%d clips to cache into %s (%s)", made, path, _known(before))
    start_ray(cluster)
    check_room("decode", cluster.decode, 1, "the decoding tasks")
    check_room("encode", cluster.encode, 1, "the encoding actors")
    _consume(chain(before.pending, settings, spec), made, settings.data.frames, settings.run.name, lease)
    after = cache_progress(plan, path)
    assert not after.pending.num_rows, f"{after.pending.num_rows} clips are neither cached nor rejected"
    seconds = time.monotonic() - started
    summary = counts_of(path, after) | {"clips_this_run": made, "seconds": seconds}
    summary |= {"clips_per_second": made / seconds, "frames_per_second": made * settings.data.frames / seconds}
    write_json(f"{path}/summary.json", summary)
    log.info("%d clips cached in %s, %d rejected, %.0f s", summary["cached"], path, summary["rejected"], seconds)
    return summary


def _consume(commits: "ray.data.Dataset", clips: int, frames: int, run: str, lease: Lease) -> None:
    """Run the chain over `clips` clips of `frames` frames each, and log every few seconds how far it is."""
    progress, size = Progress(clips, "clips", PROGRESS_S), 0
    reasons: Counter[str] = Counter()
    for row in commits.iter_rows():
        lease.check()
        progress.add(row["clips"] + len(row["reasons"]))
        reasons.update(row["reasons"])
        count_cached(run, row["clips"], row["reasons"])
        size += row["bytes"]
        if progress.due():
            each = f" ({describe_counts(dict(reasons.most_common()))})" if reasons else ""
            rejected = f"{reasons.total()} rejected{each}"
            log.info("%s", progress.line(f"{progress.rate * frames:.0f} frames/s", f"{size / MIB:.1f} MiB", rejected))


def plan_cache(settings: Settings) -> str:
    """Describe what build_cache would do, and what it would take, after making a few clips. Writes nothing.

    Raises UserError.
    """
    spec, plan, progress = _survey(settings)
    pending, shard_clips = progress.pending.num_rows, settings.cache.shard_clips
    text = (
        f"Plan: {progress.planned} clips ({describe_counts(tally(plan['split']))}) in {len(_classes(plan))} classes "
        f"from {settings.data.path}\n"
        f"  {_known(progress)}, {pending} to do: {spec.clip_bytes * pending / MIB:.1f} MiB of latents "
        f"{spec.latent_shape} in {-(-pending // shard_clips)} shards\n"
        f"  to {settings.cache_path}"
    )
    if not pending:
        return text
    found = estimate(progress.pending, spec, settings.data, settings.vae, settings.cluster)
    train = settings.train
    epochs = train.steps * train.global_batch / max(1, pc.sum(pc.equal(plan["split"], TRAIN)).as_py())
    return f"{text}\n{describe_estimate(found)}\n{describe_online(found, epochs)}"


def _survey(settings: Settings) -> tuple[CacheSpec, pa.Table, CacheProgress]:
    """Return the cache's spec; IDENTITY, split and label of the planned clips; and their progress. Raises UserError."""
    path = settings.cache_path
    check_decoder(settings.data)
    plan = plan_table(settings.data)
    found = read_spec(path)
    spec = resolve_spec(settings.data, settings.vae, settings.text)
    if found is not None:
        check_same(path, found, spec)
    progress = _with_retries(cache_progress(plan, path), settings.cache.retry_rejects)
    return spec, plan.select([*IDENTITY, "split", "label"]), progress


def _with_retries(progress: CacheProgress, wanted: Literal["all"] | list[str]) -> CacheProgress:
    """Count rejected clips as pending if cache.retry_rejects asks to try them again."""
    if not wanted:
        return progress
    reasons = progress.rejected["reason"]
    known = set(reasons.unique().to_pylist())
    chosen = known if wanted == "all" else set(wanted)
    if unknown := chosen - known:
        log.warning("cache.retry_rejects: no clip was rejected as %s", " or ".join(sorted(unknown)))
    again = pc.is_in(reasons, value_set=pa.array(sorted(chosen), pa.string()))
    retried = progress.rejected.filter(again).select(progress.pending.column_names)
    pending = pa.concat_tables([progress.pending, retried])
    return progress._replace(rejected=progress.rejected.filter(pc.invert(again)), pending=pending)


def _judge(summary: dict[str, Any], limit: float) -> None:
    """Show the rejected clips; raise JobFailed if they are more than the fraction `limit`."""
    if not summary["rejected"]:
        return
    print_rejected(summary["rejects"], f"{summary['rejected']} of {summary['planned']} clips rejected")
    share = summary["rejected"] / summary["planned"]
    if share > limit:
        raise JobFailed(
            f"{share:.1%} of the clips were rejected, more than cache.max_reject_fraction = {limit:g} "
            f"({describe_counts(summary['rejects'])}); the {summary['cached']} good ones are in "
            f"{summary['cache']}, rejects/ there names the others; raise the limit to accept that"
        )


def print_rejected(reasons: dict[str, int], title: str) -> None:
    """Print the number of rejected clips by reason as a table."""
    table = Table("reason", "clips", title=title, title_justify="left")
    for reason, count in reasons.items():
        table.add_row(reason, str(count))
    Console().print(table)


def _known(progress: CacheProgress) -> str:
    return f"{progress.cached.num_rows} cached, {progress.rejected.num_rows} rejected before"


def _classes(plan: pa.Table) -> list[str]:
    return sorted(set(plan["label"].unique().to_pylist()) - {""})
