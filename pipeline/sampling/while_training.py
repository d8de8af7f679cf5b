"""CHECKPOINT -> CLIPS while training goes on: the driver watches the run's folder and hands checkpoints to a task.

The training workers take no part and wait for nothing. The task runs where the cluster has room for an actor of
cluster.sample, and waits until there is some. A failing task costs its clips and a line of the log.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import ray
import torch

from ..data.cache.shards import read_latent
from ..data.load.mix import cache_of
from ..media import encode_mp4, encode_png, tile
from ..runtime.placement import options
from ..runtime.pools import stage_device
from ..schema import TEST, ManifestRow
from ..settings import ActorResources, SampleSettings, TextSettings
from ..storage.files import write_bytes
from ..train.checkpoint import CheckpointDamaged
from ..train.export.from_checkpoint import Found, export_checkpoint, find_checkpoints
from ..train.plan import Run
from ..train.spec import TrainSpec
from .exports import find_exports
from .generate import decode_latents, generate, load_for_sampling

log = logging.getLogger("samples")

POLL_S = 2.0  # between two looks into the folder
ROOM_PATIENCE_S = 120.0  # at the end of the training, for a task that still runs or waits for room
SHOWN_FRAMES = 4  # frames of a clip in the picture


@contextlib.contextmanager
def sampled_while_training(run: Run) -> Iterator[None]:
    """Sample every checkpoint that sample.while_training asks for into RUN/finetune/samples, within this context."""
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
            deadline = min(deadline, time.monotonic() + ROOM_PATIENCE_S)
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
        except Exception as error:  # noqa: BLE001 (no error may end training for a picture)
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
    """Start sample_checkpoint where the cluster has room for an actor of cluster.sample.

    A hanging task is not waited for, and a failing one is not tried again: the next checkpoint comes.
    """
    sample, stage = run.settings.sample, run.settings.cluster.sample
    clips = [(cache_of(run.cache, row), row) for row in run.cache.select(TEST).spread(sample.while_training_count)]
    task = ray.remote(sample_checkpoint).options(max_retries=0, **options(stage))
    return task.remote(run.spec, sample, run.settings.text, stage, clips, found)


def sample_checkpoint(
    spec: TrainSpec,
    sample: SampleSettings,
    text: TextSettings,
    stage: ActorResources,
    clips: list[tuple[str, ManifestRow]],
    found: Found,
) -> str:
    """Write RUN/finetune/samples/step-N.mp4 and .png from held-out clips, (cache, row) each. Return a line about it.

    Raises CheckpointDamaged where the checkpoint's files are not whole (yet).
    """
    if not clips:
        return "no clips are held out, so none are sampled (data.holdout_fraction)"
    device = stage_device(stage)
    with tempfile.TemporaryDirectory(prefix="samples-") as local:
        export_checkpoint(spec, found, local)
        exports = find_exports(local, spec.bridge, spec.folder.rpartition("/")[0])
        loaded = load_for_sampling(exports, sample, spec.vae, text, device)
    means = np.stack([read_latent(cache, row)[0, 0].astype(np.float32) for cache, row in clips])
    generated, _ = generate(
        loaded,
        torch.from_numpy(means * spec.cache.scaling_factor),
        [row["label"] for _, row in clips],
        [row["key"] for _, row in clips],
        spec.run.seed,
        [row["caption"] or row["label"] for _, row in clips],
        [float(row["stride"]) for _, row in clips],
    )
    frames = decode_latents(loaded, generated).cpu().numpy()
    address = f"{spec.folder}/samples/step-{found.step:07d}"
    write_bytes(f"{address}.mp4", encode_mp4(tile(list(frames)), sample.fps))
    shown = np.linspace(0, frames.shape[1] - 1, SHOWN_FRAMES).round().astype(int)
    write_bytes(f"{address}.png", encode_png(np.concatenate([np.concatenate(clip[shown], axis=1) for clip in frames])))
    return f"{len(clips)} clips in {address}.mp4"
