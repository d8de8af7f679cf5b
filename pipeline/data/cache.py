"""VIDEOS -> LATENT CACHE: the one page that chains the stages over Ray Data.

    plan, less what is known -> decode tasks -> VAE actors -> commit, a shard at a time

A clip that fails travels on as a row with a reason, so that whatever happens cached + rejected = planned. A
shard counts once its manifest part is written; a job that is cut off loses its open shards, and the next one
makes them. One job at a time works on a cache.
"""

import logging
import math
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline.data.decode import check_decoder
from pipeline.data.estimate import estimate, in_words, online_in_words
from pipeline.data.isolation import decode_clips
from pipeline.data.lock import Held, only_writer
from pipeline.data.manifest import (
    Cache,
    check_same,
    commit_clips,
    committed_parts,
    describe,
    latent_shape,
    next_round,
    open_cache,
    read_info,
    write_info,
)
from pipeline.data.plan import plan_table
from pipeline.data.standing import Standing, counts_of, standing_of, tally
from pipeline.monitoring import count_cached
from pipeline.placement import check_room, selector
from pipeline.ray_start import bars_for_people_only, start_ray
from pipeline.schema import IDENTITY, NULL_TEXT, TRAIN
from pipeline.settings import JobFailed, Settings
from pipeline.storage import exists, read_json, write_json

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
    plan, before = _survey(settings)
    before = _with_retries(before, settings)
    if before.pending.num_rows:
        parts = committed_parts(path)
        with only_writer(path) as lock:
            if committed_parts(path) != parts:  # by a job that ended since
                plan, before = _survey(settings)
                before = _with_retries(before, settings)
            summary = _make(plan, before, settings, lock)
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


def _make(plan: pa.Table, before: Standing, settings: Settings, lock: Held) -> dict[str, Any]:
    """Cache the pending clips; returns the summary, which is also written."""
    started = time.monotonic()
    path, made = settings.cache_path, before.pending.num_rows
    write_info(path, describe(settings, _classes(plan)))
    log.info("%d clips to cache into %s (%s)", made, path, _known(before))
    start_ray(settings)
    check_room(settings, "decode", 1, "the decoding tasks")
    check_room(settings, "encode", 1, "the encoding actors")
    _consume(chain(before.pending, settings), made, settings, lock)
    after = standing_of(plan, path)
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


def _with_retries(standing: Standing, settings: Settings) -> Standing:
    """Clips whose reject cache.retry_rejects asks to try again count as pending."""
    wanted = settings.cache.retry_rejects
    reasons = standing.rejected["reason"]
    if not wanted:
        return standing
    if wanted == "all":
        again = pc.is_valid(reasons)
    else:
        again = pc.is_in(reasons, value_set=pa.array(wanted, pa.string()))
        if unknown := set(wanted) - set(reasons.unique().to_pylist()):
            log.warning("cache.retry_rejects: no clip was rejected as %s", " or ".join(sorted(unknown)))
    rejected, retried = standing.rejected.filter(pc.invert(again)), standing.rejected.filter(again)
    pending = pa.concat_tables([standing.pending, retried.select(standing.pending.column_names)])
    return standing._replace(rejected=rejected, pending=pending)


def chain(pending: pa.Table, settings: Settings) -> "ray.data.Dataset":
    """The stages over the pending clips; a row of the result is what one commit did."""
    from ray.data import TaskPoolStrategy

    # Blocks of the plan, each the work of one decode task: at least 8 clips, to make the cost of a task
    # small, and at most 4096 blocks, which is what the driver has to keep track of.
    block = max(8, -(-pending.num_rows // 4096))
    blocks = [pending.slice(start, block) for start in range(0, pending.num_rows, block)]
    # A commit holds its rows, the tar and what is being uploaded.
    commit: dict[str, Any] = {
        "num_cpus": 0,
        "memory": 256 * MIB + 3 * settings.cache.shard_clips * _clip_bytes(settings),
    }
    if labels := selector(settings, "encode"):
        commit["label_selector"] = labels  # where the latents are, and not on a head that has no CPUs to give
    commits = (
        encoded(blocks, settings, settings.cluster.encode.actors, f"{settings.cache_path}/{NULL_TEXT}")
        # Input and output, hardly any computation: no CPU of its own, so that it never waits for decodes to end.
        .map_batches(
            partial(commit_clips, path=settings.cache_path, round_number=next_round(settings.cache_path)),
            batch_size=settings.cache.shard_clips,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(),
            **commit,
        )
        # Whatever blocks come, a commit gets exactly `cache.shard_clips` rows, but for the last: Ray Data fuses
        # a strict repartition into the call before it, and then cuts that call's input into whole batches.
        .repartition(target_num_rows_per_block=1, strict=True)
    )
    # It fuses what asks for the same resources, and gives a repartition one CPU without a way to say otherwise.
    commits._logical_plan.dag.ray_remote_args.update(commit)
    return commits


def encoded(
    blocks: list[pa.Table], settings: Settings, actors: int, null_text: str | None = None
) -> "ray.data.Dataset":
    """Planned clips, a block the work of one decoding task, as ENCODED_SCHEMA rows by at most `actors` VAE actors, which
    write the empty caption's embedding to `null_text`.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.data.encode import EncodeClips, clips_a_call  # torch: not for a job that finds nothing to do

    bars_for_people_only()
    data, decode, encode = settings.data, settings.cluster.decode, settings.cluster.encode
    return (
        ray.data.from_arrow(blocks)
        # num_cpus: a decode keeps one thread of its child process busy while the Ray worker waits. memory:
        # the worker, its child, one clip and two full-size frames; as the only stage that asks for memory, it
        # also is not fused into the actors, where it would run once an actor instead of once a CPU.
        .map_batches(
            partial(decode_clips, data=data),
            batch_size=max(map(len, blocks)),
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=decode.max_tasks),
            num_cpus=decode.num_cpus,
            label_selector=selector(settings, "decode"),
            memory=512 * MIB,
        )
        # An actor loads the VAE once. The pool starts with one actor and grows to the number set as GPUs come,
        # so that a smaller machine or a growing cluster works too. While a GPU computes, a second thread of
        # its actor gets the next clips ready.
        .map_batches(
            EncodeClips,
            batch_size=clips_a_call(settings.vae, data.frames, encode.num_gpus),
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=1, max_size=actors, max_concurrent_calls_per_actor=2 if encode.num_gpus else 1
            ),
            fn_constructor_kwargs={
                "vae": settings.vae,
                "data": data,
                "text": settings.text,
                "null_text": null_text,
                "num_cpus": encode.num_cpus,
                "num_gpus": encode.num_gpus,
            },
            num_cpus=encode.num_cpus,
            num_gpus=encode.num_gpus,
            label_selector=selector(settings, "encode"),
        )
    )


def _consume(commits: "ray.data.Dataset", clips: int, settings: Settings, lock: Held) -> None:
    """Run the chain, and say every few seconds how far it is."""
    started = said = time.monotonic()
    done = size = 0
    reasons: Counter[str] = Counter()
    for row in commits.iter_rows():
        lock.check()
        done += row["clips"] + len(row["reasons"])
        reasons.update(row["reasons"])
        count_cached(settings.run.name, row["clips"], row["reasons"])
        size += row["bytes"]
        now = time.monotonic()
        if now - said >= PROGRESS_S or done == clips:
            rate = done / (now - started)
            log.info(
                "%d of %d clips, %.1f clips/s, %.0f frames/s, %.1f MiB, %s, %.0f s to go",
                done,
                clips,
                rate,
                rate * settings.data.frames,
                size / MIB,
                _named(reasons),
                (clips - done) / rate,
            )
            said = now


def _clip_bytes(settings: Settings) -> int:
    """Bytes of a clip's latent: float16 mean and log-variance."""
    return 2 * 2 * math.prod(latent_shape(settings))


def _named(reasons: Counter[str]) -> str:
    """ "3 rejected (2 timeout, 1 crashed)"."""
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} rejected ({each})" if each else "0 rejected"


def plan_cache(settings: Settings) -> str:
    """What build_cache would do, and what it would take, in words: a few clips are made to tell. Writes nothing.

    Raises UserError.
    """
    plan, standing = _survey(settings)
    standing = _with_retries(standing, settings)
    splits = ", ".join(f"{count} {split}" for split, count in tally(plan["split"]).items())
    shape = describe(settings, [])["latent_shape"]
    size = _clip_bytes(settings) * standing.pending.num_rows / MIB
    text = (
        f"Plan: {standing.planned} clips ({splits}) in {len(_classes(plan))} classes "
        f"from {settings.data.path}\n"
        f"  {_known(standing)}, {standing.pending.num_rows} to do: {size:.1f} MiB of latents {shape} in "
        f"{-(-standing.pending.num_rows // settings.cache.shard_clips)} shards\n"
        f"  to {settings.cache_path}"
    )
    if not standing.pending.num_rows:
        return text
    found, train = estimate(standing.pending, settings), settings.train
    epochs = train.steps * train.global_batch / max(1, pc.sum(pc.equal(plan["split"], TRAIN)).as_py())
    return f"{text}\n{in_words(found)}\n{online_in_words(found, epochs)}"


def _survey(settings: Settings) -> tuple[pa.Table, Standing]:
    """The plan, without what only pending clips need, and what a cache of the same settings already has of it.

    Raises UserError.
    """
    path = settings.cache_path
    check_decoder(settings.data)
    plan = plan_table(settings.data)
    found = read_info(path)
    wanted = describe(settings, [])
    if found is not None:
        check_same(path, found, wanted)
    standing = standing_of(plan, path)
    return plan.select([*IDENTITY, "split", "label"]), standing


def _judge(summary: dict[str, Any], settings: Settings) -> None:
    """Show the rejects; raise JobFailed if there are too many."""
    if not summary["rejected"]:
        return
    print_rejects(summary["rejects"], f"{summary['rejected']} of {summary['planned']} clips rejected")
    share = summary["rejected"] / summary["planned"]
    if share > settings.cache.max_reject_fraction:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items())
        raise JobFailed(
            f"{share:.1%} of the clips were rejected, more than cache.max_reject_fraction = "
            f"{settings.cache.max_reject_fraction:g} ({reasons}); the {summary['cached']} good ones are in "
            f"{summary['cache']}, rejects/ there names the others; raise the limit to accept that"
        )


def print_rejects(reasons: dict[str, int], title: str) -> None:
    """The table of reasons."""
    table = Table("reason", "clips", title=title, title_justify="left")
    for reason, count in reasons.items():
        table.add_row(reason, str(count))
    Console().print(table)


def _known(standing: Standing) -> str:
    return f"{standing.cached.num_rows} cached, {standing.rejected.num_rows} rejected before"


def _classes(plan: pa.Table) -> list[str]:
    return sorted(set(plan["label"].unique().to_pylist()) - {""})
