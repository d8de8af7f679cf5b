"""VIDEOS -> LATENT CACHE: the one page that chains the stages over Ray Data.

    plan, less what is known -> decode tasks -> VAE actors -> blocks of a shard's size -> commit

A clip that fails travels on as a row with a reason, so that whatever happens cached + rejected = planned. A
shard counts once its manifest part is written; a job that is cut off loses its open shards, and the next one
makes them.
"""

import logging
import time
from collections import Counter
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline.data.isolation import decode_clips
from pipeline.data.manifest import (
    IDENTITY,
    Cache,
    check_same,
    commit_clips,
    describe,
    open_cache,
    read_info,
    read_manifest,
    read_rejects,
    write_info,
)
from pipeline.data.sources import plan_clips
from pipeline.ray_start import bars_for_people_only, start_ray
from pipeline.schema import PLAN_SCHEMA
from pipeline.settings import DataSettings, JobFailed, Settings
from pipeline.storage import exists, read_json, write_json

if TYPE_CHECKING:
    import ray.data

__all__ = ["Cache", "build_cache", "open_cache", "plan_cache"]

log = logging.getLogger("cache")

PROGRESS_S = 5.0
MIB = 2**20


class Standing(NamedTuple):
    """Where the clips of a plan stand; each is in exactly one of these tables."""

    cached: pa.Table  # PLAN_SCHEMA
    rejected: pa.Table  # PLAN_SCHEMA and "reason"
    pending: pa.Table  # PLAN_SCHEMA

    @property
    def planned(self) -> int:
        return self.cached.num_rows + self.rejected.num_rows + self.pending.num_rows


def build_cache(settings: Settings) -> dict[str, Any]:
    """Cache every planned clip that is not cached or rejected yet. Returns what it writes to
    CACHE/summary.json.

    Raises UserError, before anything is written, for a wrong source or VAE and for a cache that was made with
    other settings; JobFailed, when all is committed, if more than cache.max_reject_fraction of the clips were
    rejected.
    """
    started = time.monotonic()
    path = settings.cache_path
    plan, before = _survey(settings)
    summary_path = f"{path}/summary.json"
    if not before.pending.num_rows:
        log.info("nothing to do: %d clips already cached in %s", before.cached.num_rows, path)
        summary = read_json(summary_path) if exists(summary_path) else {}
        counts = _counts(settings, before)
        if any(summary.get(name) != value for name, value in counts.items()):
            summary |= counts
            write_json(summary_path, summary)
    else:
        write_info(path, describe(settings, _classes(plan)))
        log.info("%d clips to cache into %s (%s)", before.pending.num_rows, path, _known(before))
        start_ray(settings)
        _consume(chain(before.pending, settings), before.pending.num_rows)
        after = _standing(plan, path)
        assert not after.pending.num_rows, f"{after.pending.num_rows} clips are neither cached nor rejected"
        seconds = time.monotonic() - started
        made = before.pending.num_rows
        summary = {
            **_counts(settings, after),
            "clips_this_run": made,
            "seconds": seconds,
            "clips_per_second": made / seconds,
        }
        write_json(summary_path, summary)
        log.info(
            "%d clips cached in %s, %d rejected, %.0f s",
            after.cached.num_rows,
            path,
            after.rejected.num_rows,
            seconds,
        )
    _judge(summary, settings)
    return {**summary, "clips_this_run": before.pending.num_rows}


def chain(pending: pa.Table, settings: Settings) -> "ray.data.Dataset":
    """The stages over the pending clips; a row of the result is what one commit did."""
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    from pipeline.data.encode import EncodeClips, clips_a_call  # torch: not for a job that finds nothing to do

    bars_for_people_only()
    data, decode, encode = settings.data, settings.cluster.decode, settings.cluster.encode
    # Blocks of the plan, each the work of one decode task: at least 8 clips, to make the cost of a task
    # small, and at most 4096 blocks, which is what the driver has to keep track of.
    block = max(8, -(-pending.num_rows // 4096))
    blocks = [pending.slice(start, block) for start in range(0, pending.num_rows, block)]
    return (
        ray.data.from_arrow(blocks)
        # num_cpus: a decode keeps one thread of its child process busy while the Ray worker waits. memory:
        # the worker, its child, one clip and two full-size frames; as the only stage that asks for memory, it
        # also is not fused into the actors, where it would run once an actor instead of once a CPU.
        .map_batches(
            partial(decode_clips, data=data),
            batch_size=block,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(size=decode.max_tasks),
            num_cpus=decode.num_cpus,
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
                min_size=1, max_size=encode.actors, max_concurrent_calls_per_actor=2 if encode.num_gpus else 1
            ),
            fn_constructor_kwargs={
                "vae": settings.vae,
                "data": data,
                "num_cpus": encode.num_cpus,
                "num_gpus": encode.num_gpus,
            },
            num_cpus=encode.num_cpus,
            num_gpus=encode.num_gpus,
        )
        # Whatever blocks come, shards hold exactly `cache.shard_clips` clips, but for the last and for
        # rejects. Ray Data gives each of its tasks one CPU, and no way to ask for less.
        .repartition(target_num_rows_per_block=settings.cache.shard_clips, strict=True)
        # Input and output, hardly any computation: a tenth of a CPU lets it run beside the stages that feed
        # it.
        .map_batches(
            partial(commit_clips, path=settings.cache_path),
            batch_size=settings.cache.shard_clips,
            batch_format="pyarrow",
            compute=TaskPoolStrategy(),
            num_cpus=0.1,
        )
    )


def _consume(commits: "ray.data.Dataset", clips: int) -> None:
    """Run the chain, and say every few seconds how far it is."""
    started = said = time.monotonic()
    done = rejects = size = 0
    for row in commits.iter_rows():
        done += row["clips"] + row["rejects"]
        rejects += row["rejects"]
        size += row["bytes"]
        now = time.monotonic()
        if now - said >= PROGRESS_S or done == clips:
            rate = done / (now - started)
            log.info(
                "%d of %d clips, %.1f clips/s, %d rejected, %.1f MiB, %.0f s to go",
                done,
                clips,
                rate,
                rejects,
                size / MIB,
                (clips - done) / rate,
            )
            said = now


def plan_cache(settings: Settings) -> str:
    """What build_cache would do, in words. Reads source and cache, writes nothing. Raises UserError."""
    plan, standing = _survey(settings)
    splits = ", ".join(f"{count} {split}" for split, count in tally(plan["split"]).items())
    shape = describe(settings, [])["latent_shape"]
    clip_bytes = 2 * 2 * shape[0] * shape[1] * shape[2] * shape[3]
    size = clip_bytes * standing.pending.num_rows / MIB
    return (
        f"Plan: {standing.planned} clips ({splits}) in {len(_classes(plan))} classes "
        f"from {settings.data.path}\n"
        f"  {_known(standing)}, {standing.pending.num_rows} to do: {size:.1f} MiB of latents {shape} in "
        f"{-(-standing.pending.num_rows // settings.cache.shard_clips)} shards\n"
        f"  to {settings.cache_path}"
    )


def _survey(settings: Settings) -> tuple[pa.Table, Standing]:
    """The plan, and what an existing cache of the same settings already has of it. Raises UserError."""
    path = settings.cache_path
    plan = plan_table(settings.data)
    found = read_info(path)
    wanted = describe(settings, [])
    if found is not None:
        check_same(path, found, wanted)
    return plan, _standing(plan, path)


def plan_table(data: DataSettings) -> pa.Table:
    """The planned clips as an Arrow table of PLAN_SCHEMA. Raises UserError."""
    clips = plan_clips(data)
    parts = []
    while part := list(islice(clips, 65536)):
        parts.append(pa.Table.from_pylist(part, schema=PLAN_SCHEMA))
    return pa.concat_tables(parts)


def _standing(plan: pa.Table, path: str) -> Standing:
    """Match the plan with the committed manifest and rejects, on what identifies an unopened clip."""
    made, rejects = read_manifest(path).select(IDENTITY), read_rejects(path).select([*IDENTITY, "reason"])
    ordered = plan.append_column("order", pa.array(range(plan.num_rows), pa.int64()))
    rest = ordered.join(made, IDENTITY, join_type="left anti")
    tables = (
        ordered.join(made, IDENTITY, join_type="left semi"),
        rest.join(rejects, IDENTITY, join_type="inner"),
        rest.join(rejects, IDENTITY, join_type="left anti"),
    )
    return Standing(*(table.sort_by("order").drop_columns(["order"]) for table in tables))


def _counts(settings: Settings, standing: Standing) -> dict[str, Any]:
    """What summary.json says of the cache as it stands."""
    manifest = read_manifest(settings.cache_path)
    return {
        "cache": settings.cache_path,
        "planned": standing.planned,
        "cached": standing.cached.num_rows,
        "rejected": standing.rejected.num_rows,
        "rejects": tally(standing.rejected["reason"]),
        "splits": tally(standing.cached["split"]),
        "decoders": tally(manifest["decoder"]),
        "shards": pc.count_distinct(manifest["shard"]).as_py(),
        "bytes": pc.sum(manifest["length"]).as_py() or 0,
    }


def tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(Counter(column.to_pylist()).most_common())


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
