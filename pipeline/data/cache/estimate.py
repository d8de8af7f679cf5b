"""PLAN -> ESTIMATE: time, storage and GPU-hours of a caching job, from a few of its clips, made here and thrown away.

No Ray: a child process decodes the clips as a decoding task would, and they are encoded as an actor would. Where the
settings ask for a GPU and this machine has none, the time of encoding follows from the VAE's arithmetic instead.
"""

import copy
import math
import os
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ...runtime.progress import duration
from ...schema import MANIFEST_SCHEMA
from ...settings import ActorResources, ClusterSettings, DataSettings, VaeSettings
from ..decode.stage import decode_clips
from .info import CacheSpec
from .manifest import spread
from .progress import describe_counts, tally
from .shards import build_shard, npy_bytes

SAMPLE = 8  # clips
PATIENCE_S = 20.0  # for a clip of the sample; data.decode_timeout_s if that is less
ENCODING_S = 10.0  # after which no further clip of the sample is encoded
ASSUMED_TFLOPS = 100.0  # of a GPU that is not here: a third of the bfloat16 peak in an A100's data sheet


class Estimate(NamedTuple):
    """What caching `clips` clips takes, from `sample` of them."""

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

    @property
    def usable(self) -> float:
        """Clips that are not rejected, if the sample is like the rest."""
        return self.clips * (self.sample - sum(self.rejected.values())) / self.sample


def estimate(
    pending: pa.Table, spec: CacheSpec, data: DataSettings, vae: VaeSettings, cluster: ClusterSettings
) -> Estimate:
    """Make SAMPLE of the `pending` clips (PLAN_SCHEMA, at least one), the same ones every time."""
    chosen, limit = pending.take(spread(pending.num_rows, SAMPLE)), min(PATIENCE_S, data.decode_timeout_s)
    list(decode_clips(chosen.slice(0, 1), data, limit))  # starts the child, and is not counted
    started = time.perf_counter()
    decoded = pa.concat_tables(decode_clips(chosen, data, limit))
    decode_s = (time.perf_counter() - started) / chosen.num_rows
    good, rejected = decoded.filter(decoded["reason"].is_null()), tally(decoded["reason"].drop_null())
    encode_s, measured = _encoding(good, data, vae, cluster.encode)
    usable = pending.num_rows * good.num_rows / decoded.num_rows
    seconds, assumed = job_seconds(pending.num_rows * decode_s, usable * encode_s, cluster)
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
        gpu_hours=usable * encode_s * cluster.encode.num_gpus / 3600,
        assumed=assumed,
    )


def _encoding(decoded: pa.Table, data: DataSettings, vae: VaeSettings, encode: ActorResources) -> tuple[float, bool]:
    """(seconds a clip in one actor, whether that was measured)."""
    import torch

    if encode.num_gpus > 0 and not torch.cuda.is_available():
        from ...models.vae import load_vae

        flops = data.frames * flops_a_frame(load_vae(vae.path).module, data.height, data.width)
        return flops / (ASSUMED_TFLOPS * 1e12), False
    if not decoded.num_rows:
        return 0.0, True
    from .encode import EncodeClips, clips_a_call

    actor = EncodeClips(vae, data, encode.num_cpus, encode.num_gpus)
    frames = [np.frombuffer(value.as_buffer(), np.uint8) for value in decoded["frames"]]
    batch = clips_a_call(vae, data.frames, encode.num_gpus) if encode.num_gpus else 1
    actor.encode([frames[index % len(frames)] for index in range(batch)])  # chooses kernels, and is not counted
    started, done = time.perf_counter(), 0
    while done < SAMPLE * batch and time.perf_counter() - started <= ENCODING_S:
        actor.encode([frames[(done + index) % len(frames)] for index in range(batch)])
        done += batch
    return (time.perf_counter() - started) / done, True


def flops_a_frame(module: "object", height: int, width: int) -> float:
    """FLOP to encode a frame, counted without computing it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shadow = copy.deepcopy(module).to("meta")  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow.encode(torch.empty(1, 3, height, width, device="meta", dtype=next(shadow.parameters()).dtype))
    return float(counter.get_total_flops())


def _clip_bytes(good: pa.Table, spec: CacheSpec) -> float:
    """Bytes of a clip in a shard: its latent, its description, and the tar's padding."""
    latent = npy_bytes(np.zeros((2, *spec.latent_shape), np.float16))
    if not good.num_rows:
        return float(len(latent))
    rows = good.select([name for name in MANIFEST_SCHEMA.names if name in good.column_names]).to_pylist()
    return len(build_shard((row, latent, None) for row in rows)[0]) / len(rows)


def job_seconds(decode: float, encode: float, cluster: ClusterSettings) -> tuple[float, list[str]]:
    """(seconds of the whole job, what that assumes), from seconds of decoding in one task and encoding in one actor."""
    actors, tasks = cluster.encode.actors, cluster.decode.max_tasks
    if cluster.encode.num_gpus == 0 and not os.environ.get("RAY_ADDRESS"):
        cores = os.cpu_count() or 1
        work = decode * cluster.decode.num_cpus + encode * cluster.encode.num_cpus
        return max(work / cores, encode / actors), [f"decoding and encoding share this machine's {cores} CPUs"]
    if tasks is not None:
        assumed = f"{actors} actors and {tasks} decoding tasks, as cluster says"
    else:
        tasks = math.ceil(decode / (encode / actors)) if encode else 1
        assumed = f"{actors} actors, as cluster.encode.actors says, and CPUs for the {tasks} decoding tasks they use"
    return max(decode / tasks, encode / actors), [assumed]


def describe_estimate(found: Estimate) -> str:
    """Put the estimate into words, with what it rests on."""
    how, size = "measured" if found.measured else "calculated", found.usable * found.clip_bytes / 2**20
    lines = [
        f"Estimate: {duration(found.seconds)}, {size:.1f} MiB in shards, {found.gpu_hours:.3g} GPU-hours",
        f"  from {found.sample} clips, spread over the plan, made here and thrown away: "
        f"{found.decode_s * 1e3:.0f} ms to decode one, {found.encode_s * 1e3:.0f} ms to encode one ({how})",
    ]
    if found.rejected:
        bad, reasons = sum(found.rejected.values()), describe_counts(found.rejected)
        lines.append(f"  {bad} of them cannot be used ({reasons})")
    return "\n".join([*lines, f"  assumed: {'; '.join(found.assumed)}"])


def describe_online(found: Estimate, epochs: float) -> str:
    """Say what training for `epochs` epochs without a cache (data.online) would take instead.

    It repeats the work of caching in each epoch, and saves the storage of the shards. Reading a cached clip is small
    beside both.
    """
    more = (epochs - 1) * (found.clips * found.decode_s + found.usable * found.encode_s) / 3600
    verdict = f"{more:.3g} hours more of decoding and encoding" if more > 0 else "the same work, with nothing kept"
    return (
        f"Training of {epochs:.1f} epochs with data.online instead: {verdict}, for "
        f"{found.usable * found.clip_bytes / 2**30:.3g} GiB less in storage"
    )
