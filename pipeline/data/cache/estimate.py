"""PLAN -> ESTIMATE: what a caching job will take, from a few of its clips made here and thrown away.

No Ray: the clips are decoded by a child process as a decoding task would, and encoded as an actor would. Where the
settings ask for a GPU and this machine has none, encoding is reckoned from the VAE's arithmetic instead.
"""

import math
import os
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ...schema import MANIFEST_SCHEMA
from ...settings import Settings
from ..decode.stage import decode_clips
from .info import CacheSpec
from .shards import build_shard

SAMPLE = 8  # clips
PATIENCE_S = 20.0  # for a clip of the sample; data.decode_timeout_s if that is less
ENCODING_S = 10.0  # after which no further clip of the sample is encoded
ASSUMED_TFLOPS = 100.0  # of a GPU that is not here: a third of what an A100's data sheet promises in bfloat16


class Estimate(NamedTuple):
    """Of `clips` clips, from `sample` of them."""

    clips: int
    sample: int
    rejected: dict[str, int]  # reason -> clips of the sample
    decode_s: float  # a clip, in one decoding task
    encode_s: float  # a clip, in one actor
    measured: bool  # whether encoding was measured, on the kind of device that the settings name
    clip_bytes: float  # in a shard
    seconds: float
    gpu_hours: float
    assumed: list[str]


def estimate(pending: pa.Table, settings: Settings, spec: CacheSpec) -> Estimate:
    """Make SAMPLE of the `pending` clips (PLAN_SCHEMA, at least one), the same ones every time."""
    chosen = spread(pending, SAMPLE)
    data, limit = settings.data, min(PATIENCE_S, settings.data.decode_timeout_s)
    list(decode_clips(chosen.slice(0, 1), data, limit))  # starts the child, and is not counted
    started = time.perf_counter()
    decoded = pa.concat_tables(decode_clips(chosen, data, limit))
    decode_s = (time.perf_counter() - started) / chosen.num_rows
    good = decoded.filter(decoded["reason"].is_null())
    encode_s, measured = _encoding(good, settings)
    rejected = dict(Counter(decoded.filter(decoded["reason"].is_valid())["reason"].to_pylist()).most_common())
    usable = pending.num_rows * good.num_rows / decoded.num_rows
    seconds, assumed = _seconds(pending.num_rows * decode_s, usable * encode_s, settings)
    gpus = settings.cluster.encode.num_gpus
    if not measured:
        assumed.append(f"a GPU does {ASSUMED_TFLOPS:g} TFLOP/s in the VAE's encoder; none is here to measure")
    if rejected:
        assumed.append("the share of clips that cannot be used is that of the sample")
    return Estimate(
        clips=pending.num_rows,
        sample=decoded.num_rows,
        rejected=rejected,
        decode_s=decode_s,
        encode_s=encode_s,
        measured=measured,
        clip_bytes=_clip_bytes(good, spec),
        seconds=seconds,
        gpu_hours=usable * encode_s * gpus / 3600,
        assumed=assumed,
    )


def spread(table: pa.Table, count: int) -> pa.Table:
    """`count` rows spread evenly over the table, each in the middle of its share; all if there are no more."""
    rows = table.num_rows
    return table.take([rows * (2 * index + 1) // (2 * count) for index in range(count)]) if rows > count else table


def _encoding(decoded: pa.Table, settings: Settings) -> tuple[float, bool]:
    """(seconds a clip in one actor, whether that was measured)."""
    import torch

    on_gpu = settings.cluster.encode.num_gpus > 0
    if on_gpu and not torch.cuda.is_available():
        from ...models.vae import load_vae

        vae = load_vae(settings.vae.path)
        flops = settings.data.frames * flops_a_frame(vae.module, settings.data.height, settings.data.width)
        return flops / (ASSUMED_TFLOPS * 1e12), False
    if not decoded.num_rows:
        return 0.0, True
    from .encode import EncodeClips, clips_a_call

    encode = settings.cluster.encode
    actor = EncodeClips(settings.vae, settings.data, encode.num_cpus, encode.num_gpus)
    frames = [np.frombuffer(value.as_buffer(), np.uint8) for value in decoded["frames"]]
    batch = clips_a_call(settings.vae, settings.data.frames, encode.num_gpus) if on_gpu else 1
    clips = [
        [frames[(start + index) % len(frames)] for index in range(batch)] for start in range(0, SAMPLE * batch, batch)
    ]
    actor.encode(clips[0])  # the first call chooses kernels, and is not counted
    started, done = time.perf_counter(), 0
    for some in clips:
        actor.encode(some)
        done += len(some)
        if time.perf_counter() - started > ENCODING_S:
            break
    return (time.perf_counter() - started) / done, True


def flops_a_frame(module: "object", height: int, width: int) -> float:
    """FLOP to encode a frame, counted without computing it."""
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shadow = copy.deepcopy(module).to("meta")  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow.encode(torch.empty(1, 3, height, width, device="meta", dtype=next(shadow.parameters()).dtype))
    return float(counter.get_total_flops())


def _clip_bytes(good: pa.Table, spec: CacheSpec) -> float:
    """Bytes of a clip in a shard: its latent, what describes it, and the tar's padding."""
    from .encode import npy_bytes

    latent = npy_bytes(np.zeros((2, *spec.latent_shape), np.float16))
    if not good.num_rows:
        return float(len(latent))
    rows = good.select([name for name in MANIFEST_SCHEMA.names if name in good.column_names]).to_pylist()
    tar, _ = build_shard((row, latent, None) for row in rows)
    return len(tar) / len(rows)


def _seconds(decode: float, encode: float, settings: Settings) -> tuple[float, list[str]]:
    """(seconds of the whole job, what that assumes) from seconds of decoding in one task, of encoding in one actor."""
    cluster = settings.cluster
    actors, tasks = cluster.encode.actors, cluster.decode.max_tasks
    if cluster.encode.num_gpus == 0 and not os.environ.get("RAY_ADDRESS"):
        cores = os.cpu_count() or 1
        work = decode * cluster.decode.num_cpus + encode * cluster.encode.num_cpus
        return max(work / cores, encode / actors), [f"decoding and encoding share this machine's {cores} CPUs"]
    if tasks is not None:
        return max(decode / tasks, encode / actors), [f"{actors} actors and {tasks} decoding tasks, as cluster says"]
    needed = math.ceil(decode / (encode / actors)) if encode else 1
    there = (
        f"{actors} actors, as cluster.encode.actors says, and CPUs for the {needed} decoding tasks that they can use"
    )
    return max(decode / needed, encode / actors), [there]


def describe_estimate(found: Estimate) -> str:
    """The estimate, and plainly what it rests on."""
    bad = sum(found.rejected.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.rejected.items())
    good = found.clips * (found.sample - bad) / found.sample
    how = "measured" if found.measured else "reckoned"
    lines = [
        f"Estimate: {_duration(found.seconds)}, {good * found.clip_bytes / 2**20:.1f} MiB in shards, "
        f"{found.gpu_hours:.3g} GPU-hours",
        f"  from {found.sample} clips, spread over the plan, made here and thrown away: {found.decode_s * 1e3:.0f} ms to "
        f"decode one, {found.encode_s * 1e3:.0f} ms to encode one ({how})",
    ]
    if bad:
        lines.append(f"  {bad} of them cannot be used ({reasons})")
    lines.append(f"  assumed: {'; '.join(found.assumed)}")
    return "\n".join(lines)


def describe_online(found: Estimate, epochs: float) -> str:
    """What training `epochs` epochs without a cache (data.online) would take instead: the work of caching again each epoch,
    for the storage of the shards. Reading a cached clip is small beside both.
    """
    good = found.clips * (found.sample - sum(found.rejected.values())) / found.sample
    hours = (found.clips * found.decode_s + good * found.encode_s) / 3600
    more = (epochs - 1) * hours
    verdict = f"{more:.3g} hours more of decoding and encoding" if more > 0 else "the same work, with nothing kept"
    return (
        f"Training of {epochs:.1f} epochs with data.online instead: {verdict}, for {good * found.clip_bytes / 2**30:.3g} GiB "
        "less in storage"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
