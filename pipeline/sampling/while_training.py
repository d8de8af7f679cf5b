"""CHECKPOINT -> CLIPS, while training goes on: the driver watches the run's folder and hands committed checkpoints to a task.

The workers that train know nothing of it and wait for nothing: the task runs where the cluster has room for an actor of
cluster.sample, and until there is some it waits. One that fails costs its clips and a line of the log.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch

from ..data.cache.shards import read_latent
from ..data.load.mix import cache_of, open_training_cache
from ..media import encode_mp4, encode_png, tile
from ..runtime.placement import needs, selector
from ..runtime.pools import stage_device
from ..schema import TEST
from ..settings import Settings
from ..storage.files import write_bytes
from ..train.checkpoint import CheckpointDamaged
from ..train.export.from_checkpoint import Found, export_checkpoint, find_checkpoints
from ..train.plan import Run
from ..train.spec import TrainSpec
from .exports import find_exports
from .generate import decode_clips, generate, load_for_sampling

log = logging.getLogger("samples")

POLL_S = 2.0  # between two looks into the folder
PATIENCE_S = 120.0  # at the end of the training, for a task that is under way or gets its room then
SHOWN = 4  # frames of a clip in the picture


@contextlib.contextmanager
def sampled_while_training(run: Run) -> Iterator[None]:
    """Within it, every checkpoint that sample.while_training asks for is sampled into RUN/finetune/samples."""
    if run.settings.sample.while_training is None:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(run, ended), name="samples", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def watch(run: Run, ended: threading.Event) -> None:
    """Hand checkpoints to a task, one at a time and always the latest, until training has ended."""
    every = run.settings.sample.while_training
    assert every is not None
    done, task, step = 0, None, 0  # done: the last step that was sampled, or tried
    deadline = float("inf")
    while True:
        if ended.wait(POLL_S):
            deadline = min(deadline, time.monotonic() + PATIENCE_S)
        try:
            if task is not None and ray.wait([task], timeout=0)[0]:
                log.info("step %d: %s", step, ray.get(task))
                task, done = None, step
            if task is None and not ended.is_set() and ray.is_initialized():
                latest = find_checkpoints(run.spec.folder)[-1:]
                if latest and latest[0].step // every > done // every:
                    task, step = start_task(run, latest[0]), latest[0].step
        except CheckpointDamaged:
            task = None  # still being written, or pruned: the next look tells
        except Exception as error:  # noqa: BLE001 (whatever it is, training is not to end for a picture)
            lines = str(error).strip().splitlines() or [""]
            log.warning("step %d: no clips were made (%s: %s)", step, type(error).__name__, lines[-1])
            task, done = None, step
        if task is None and ended.is_set():
            return
        if time.monotonic() > deadline:
            log.warning("step %d: no clips were made, the cluster had no room for it", step)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)
            return


def start_task(run: Run, found: Found) -> "ray.ObjectRef":
    """Start sample_checkpoint where the cluster has room for an actor of cluster.sample."""
    settings = run.settings
    resources = needs(settings.cluster.sample)
    options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    if labels := selector(settings.cluster.sample):
        options["label_selector"] = labels
    # one that does not end is not waited for, and one that fails is not tried again: the next checkpoint comes
    return ray.remote(sample_checkpoint).options(max_retries=0, **options).remote(run.spec, settings, found)


def sample_checkpoint(spec: TrainSpec, settings: Settings, found: Found) -> str:
    """Write clips of a checkpoint as RUN/finetune/samples/step-N.mp4 and .png; what was done, in words.

    Raises CheckpointDamaged where its files are not whole (yet).
    """
    device = stage_device(settings.cluster.sample)
    cache = open_training_cache(spec.cache_path, spec.caches.mix, spec.cache)
    rows = list(cache.select(TEST).spread(settings.sample.while_training_count))
    if not rows:
        return "no clips are held out, so none are sampled (data.holdout_fraction)"
    with tempfile.TemporaryDirectory(prefix="samples-") as local:
        export_checkpoint(spec, found, local)
        exports = find_exports(local, settings.bridge, settings.run.folder)
        sampler = load_for_sampling(exports, settings.sample, settings.vae, settings.text, device)
    scale = cache.spec.scaling_factor
    means = [read_latent(cache_of(cache, row), row)[0, 0].astype(np.float32) * scale for row in rows]
    clips, _ = generate(
        sampler,
        torch.from_numpy(np.stack(means)),
        [row["label"] for row in rows],
        [row["key"] for row in rows],
        settings.run.seed,
        [row["caption"] or row["label"] for row in rows],
        [float(row["stride"]) for row in rows],
    )
    frames = decode_clips(sampler, clips).cpu().numpy()
    address = f"{spec.folder}/samples/step-{found.step:07d}"
    write_bytes(f"{address}.mp4", encode_mp4(tile(list(frames)), settings.sample.fps))
    shown = np.linspace(0, frames.shape[1] - 1, SHOWN).round().astype(int)
    write_bytes(f"{address}.png", encode_png(np.concatenate([np.concatenate(clip[shown], axis=1) for clip in frames])))
    return f"{len(rows)} clips in {address}.mp4"
