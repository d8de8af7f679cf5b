"""VIDEOS -> LATENT CACHE: the one page that chains the stages over Ray Data.

    plan, less what is known -> decode tasks -> VAE actors -> commit, a shard at a time

A clip that fails travels on as a row with a reason, so that whatever happens cached + rejected = planned. A
shard counts once its manifest part is written; a job that is cut off loses its open shards, and the next one
makes them. One job at a time works on a cache.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ...runtime.connect import bars_for_people_only
from ...runtime.placement import selector
from ...runtime.pools import actor_pool
from ...runtime.ray_internals import set_last_arguments
from ...schema import NULL_TEXT
from ...settings import Settings
from ..decode.stage import decode_clips
from .commit import commit_clips
from .info import CacheSpec
from .manifest import next_round

if TYPE_CHECKING:
    import ray.data


MIB = 2**20


def chain(pending: pa.Table, settings: Settings, spec: CacheSpec) -> "ray.data.Dataset":
    """The stages over the pending clips; a row of the result is what one commit did."""
    from ray.data import TaskPoolStrategy

    # Blocks of the plan, each the work of one decode task: at least 8 clips, to make the cost of a task
    # small, and at most 4096 blocks, which is what the driver has to keep track of.
    block = max(8, -(-pending.num_rows // 4096))
    blocks = [pending.slice(start, block) for start in range(0, pending.num_rows, block)]
    # A commit holds its rows, the tar and what is being uploaded.
    commit: dict[str, Any] = {"num_cpus": 0, "memory": 256 * MIB + 3 * settings.cache.shard_clips * spec.clip_bytes}
    if labels := selector(settings.cluster.encode):
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
    set_last_arguments(commits, commit)
    return commits


def encoded(
    blocks: list[pa.Table], settings: Settings, actors: int, null_text: str | None = None
) -> "ray.data.Dataset":
    """Planned clips, a block the work of one decoding task, as ENCODED_SCHEMA rows by at most `actors` VAE actors, which
    write the empty caption's embedding to `null_text`.
    """
    import ray.data
    from ray.data import TaskPoolStrategy

    from .encode import EncodeClips, clips_a_call  # torch: not for a job that finds nothing to do

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
            label_selector=selector(settings.cluster.decode),
            memory=512 * MIB,
        )
        # An actor loads the VAE once. The pool starts with one actor and grows to the number set as GPUs come,
        # so that a smaller machine or a growing cluster works too. While a GPU computes, a second thread of
        # its actor gets the next clips ready.
        .map_batches(
            EncodeClips,
            batch_size=clips_a_call(settings.vae, data.frames, encode.num_gpus),
            batch_format="pyarrow",
            fn_constructor_kwargs={
                "vae": settings.vae,
                "data": data,
                "text": settings.text,
                "null_text": null_text,
                "num_cpus": encode.num_cpus,
                "num_gpus": encode.num_gpus,
            },
            **actor_pool(encode, actors, calls_per_actor=2 if encode.num_gpus else 1),
        )
    )
