"""VIDEOS -> LATENT CACHE: the page that chains the stages over Ray Data.

    1 plan     in the driver       V videos -> N clips, less those that are cached or rejected (run.py)
    2 decode   tasks on CPUs       N clips  -> N rows: frames, or the reason why there are none
    3 encode   actors with a VAE   N rows   -> N rows: a latent, or the reason why there is none
    4 commit   tasks               N rows   -> for each cache.shard_clips rows a shard, and a row of its counts

A clip that fails travels on as a row with a reason, so always cached + rejected = planned. A shard counts once its
manifest part is written; a job that is cut off loses its open shards, and the next job makes them. One job at a time
works on a cache.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ...runtime.connect import bars_for_people_only
from ...runtime.placement import selector
from ...runtime.pools import actor_pool
from ...runtime.ray_internals import set_last_arguments
from ...schema import NULL_TEXT
from ...settings import ClusterSettings, DataSettings, Settings, TextSettings, VaeSettings
from ..decode.child import MIB
from ..decode.stage import decode_clips
from .commit import commit_clips
from .info import CacheSpec
from .manifest import next_round

if TYPE_CHECKING:
    import ray.data


def chain(pending: pa.Table, settings: Settings, spec: CacheSpec) -> "ray.data.Dataset":
    """The stages over the pending clips; a row of the result holds the counts of one commit."""
    from ray.data import TaskPoolStrategy

    path, cluster, clips = settings.cache_path, settings.cluster, settings.cache.shard_clips

    # 1 plan: N clips in blocks, each the work of one decode task. At least 8 clips make the cost of a task small; at
    # most 4096 blocks are what the driver can keep track of.
    block = max(8, -(-pending.num_rows // 4096))
    blocks = [pending.slice(start, block) for start in range(0, pending.num_rows, block)]

    # 2 decode, 3 encode: N clips -> N rows
    rows = encoded(
        blocks, settings.data, settings.vae, settings.text, cluster, cluster.encode.actors, f"{path}/{NULL_TEXT}"
    )

    # 4 commit: `clips` rows -> 1 row.
    # num_cpus 0: it reads and writes, and computes next to nothing, so it never waits for decode tasks to end.
    # memory: its rows, the tar and the copy that is uploaded, 3 times the latents, and 256 MiB for the process.
    # label_selector: it runs where the latents are, and not on a head that has no CPUs to give.
    commit: dict[str, Any] = {"num_cpus": 0, "memory": 256 * MIB + 3 * clips * spec.clip_bytes}
    if labels := selector(cluster.encode):
        commit["label_selector"] = labels
    function = partial(commit_clips, path=path, round_number=next_round(path))
    commits = rows.map_batches(
        function, batch_size=clips, batch_format="pyarrow", compute=TaskPoolStrategy(), **commit
    ).repartition(target_num_rows_per_block=1, strict=True)
    # Whatever blocks come, a commit gets exactly `clips` rows, but for the last: Ray Data fuses a strict repartition
    # into the call before it, and then cuts that call's input into whole batches. It fuses only what asks for the same
    # resources, and gives a repartition one CPU without a way to say otherwise.
    set_last_arguments(commits, commit)
    return commits


def encoded(
    blocks: list[pa.Table],
    data: DataSettings,
    vae: VaeSettings,
    text: TextSettings,
    cluster: ClusterSettings,
    actors: int,
    null_text: str | None = None,
) -> "ray.data.Dataset":
    """Stages 2 and 3: planned clips, a block for each decode task, as ENCODED_SCHEMA rows.

    At most `actors` VAE actors encode, and write the empty caption's embedding to `null_text`.
    """
    import ray.data
    from ray.data import TaskPoolStrategy

    from .encode import EncodeClips, clips_a_call  # torch: not for a job that finds nothing to do

    bars_for_people_only()
    decode, encode = cluster.decode, cluster.encode

    # 2 decode: 1 clip -> 1 row, a block for each task.
    # num_cpus: a decode keeps one thread of its child process busy while the Ray worker waits.
    # memory: the worker, its child, one clip and two full-size frames. No other stage before the commit asks for
    # memory, so Ray does not fuse this into the actors, where it would run once for each actor and not for each CPU.
    frames = ray.data.from_arrow(blocks).map_batches(
        partial(decode_clips, data=data),
        batch_size=max(map(len, blocks)),
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=decode.max_tasks),
        num_cpus=decode.num_cpus,
        label_selector=selector(decode),
        memory=512 * MIB,
    )

    # 3 encode: 1 row -> 1 row, clips_a_call rows for each call of an actor.
    # actors: each loads the VAE once. The pool starts with one and grows as resources come, so a smaller machine or a
    # growing cluster works too.
    # calls_per_actor: while a GPU computes, a second thread of its actor gets the next clips ready.
    resources = {"num_cpus": encode.num_cpus, "num_gpus": encode.num_gpus}
    return frames.map_batches(
        EncodeClips,
        batch_size=clips_a_call(vae, data.frames, encode.num_gpus),
        batch_format="pyarrow",
        fn_constructor_kwargs={"vae": vae, "data": data, "text": text, "null_text": null_text, **resources},
        **actor_pool(encode, actors, calls_per_actor=2 if encode.num_gpus else 1),
    )
