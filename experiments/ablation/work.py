"""The tasks of the ablation: train a model, or sample one and measure its clips. No Ray here.

ABLATION/models/NAME-sSEED/stepN    an export of the model, as jobs/finetune.py makes them; summary.json comes last
ABLATION/truth.npz                  the held-out clips after VAE encoding and decoding, and the detector's answers
ABLATION/measured/KEY.json          a measurement: one number or feature vector for each clip
"""

import io
import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.moments import read_moments, save_moments
from pipeline.data.cache.shards import read_latent
from pipeline.data.load.batches import training_batches
from pipeline.data.load.reader import Source
from pipeline.metrics.networks import load_network
from pipeline.models.prior import replicate
from pipeline.models.vae import load_vae
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import generate, load_for_sampling
from pipeline.sampling.items import Item, held_out_items
from pipeline.sampling.measures import frame_difference, latent_error, motion_ratio, psnr
from pipeline.schema import TRAIN
from pipeline.settings import EvaluateSettings, SampleSettings, Settings, VaeSettings
from pipeline.storage.files import read_bytes, write_bytes, write_json
from pipeline.train.engine import TrainingEngine
from pipeline.train.export.write import export, export_config
from pipeline.train.initial import build_loss, initial_model
from pipeline.train.loop import RunControl, train_steps
from pipeline.train.ranks import RankInfo
from pipeline.train.report.meter import Meter, Row
from pipeline.train.spec import TrainSpec, train_spec
from pipeline.train.worker import quieten

from .protocol import STILL, Measurement, Model, folder_of

Arrays = dict[str, np.ndarray]
BATCH = 16  # clips sampled or decoded at once


def alone() -> RankInfo:
    """Make this process the only worker of a process group, which DeepSpeed and the training loop need.

    The group stays for later tasks of this process: DeepSpeed keeps a reference to it.
    """
    torch.set_num_threads(1)
    if not dist.is_initialized():
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return RankInfo(0, 1, torch.device("cpu"))


class Exports(RunControl):
    """Exports the model after the steps that are measured, and keeps the losses."""

    def __init__(self, spec: TrainSpec, folder: str, steps: tuple[int, ...]) -> None:
        self.config, self.folder, self.steps = export_config(spec), folder, steps
        self.losses: dict[int, float | None] = {}

    def save(self, engine: TrainingEngine, row: Row) -> None:
        """Export after the chosen steps."""
        self.losses[engine.steps] = row["loss"]
        if engine.steps in self.steps:
            state = {name.removeprefix("backbone."): value for name, value in engine.export_state().items()}
            export(f"{self.folder}/step{engine.steps}", state, self.config | {"steps": engine.steps})


def train_model(model: Model) -> None:
    """Train as jobs/finetune.py does, in this process: loss, loop and engine. Write summary.json last."""
    quieten()
    started, settings, rank = time.monotonic(), model.settings, alone()
    cache = open_cache(settings.cache_path)
    spec = train_spec(model.job, settings, cache.spec)
    train, folder = spec.train, settings.run.folder
    network, _ = initial_model(spec)
    engine = TrainingEngine(network, train, rank)
    source = Source(cache, cache.select(TRAIN), cache.spec.classes, train.label_dropout, spec.run.seed)
    batches = training_batches(source, train.global_batch, train.micro_batch, 0, 1, range(train.steps))
    exports = Exports(spec, folder, model.keep)
    train_steps(engine, build_loss(spec, network, rank.device), batches, [], Meter(train, rank), exports)
    summary = {"losses": exports.losses, "seconds": time.monotonic() - started, "clips": len(source.rows)}
    write_json(f"{folder}/summary.json", summary)


def held_out(cache: Cache, count: int) -> tuple[list[Item], Tensor]:
    """The first held-out clips, and their scaled posterior means (N, F, C, h, w) float32."""
    items = held_out_items(cache, count)
    means = np.stack([read_latent(cache.path, item["row"])[0].astype(np.float32) for item in items if item["row"]])
    return items, torch.from_numpy(means) * cache.spec.scaling_factor


def prepare(settings: Settings) -> None:
    """Write the true clips to measure against, the measurement of still images, and the moments for CIL."""
    torch.set_num_threads(1)
    cache, folder = open_cache(settings.cache_path), folder_of(settings.run)
    moments = read_moments(cache.path, cache.select(TRAIN), cache.spec.scaling_factor)
    save_moments(f"{folder}/moments", moments, cache.spec.fingerprint)
    _, latents = held_out(cache, settings.ablate.clips)
    frames, seen = look(settings.vae, settings.evaluate, latents)
    stream = io.BytesIO()
    motion = np.array([frame_difference(clip) for clip in frames])
    np.savez(stream, allow_pickle=False, first=frames[:, 0], motion=motion, **seen)
    write_bytes(f"{folder}/truth.npz", stream.getvalue())
    still = replicate(latents[:, 0], latents.shape[1])
    found = compare(folder, still, latents, *look(settings.vae, settings.evaluate, still))
    write_json(f"{folder}/measured/{STILL}.json", found | {"seconds": 0.0})


def measure(measurement: Measurement, folder: str) -> None:
    """Sample and compare; write FOLDER/measured/KEY.json: numbers for each clip, and the seconds of sampling one."""
    torch.set_num_threads(1)
    settings = measurement.model.settings
    exports = find_exports(f"{settings.run.folder}/step{measurement.step}", settings.bridge, settings.run.folder)
    sample = SampleSettings.model_validate(settings.sample.model_dump() | measurement.sample)
    items, latents = held_out(open_cache(settings.cache_path), measurement.clips)
    model = load_for_sampling(exports, sample, settings.vae, settings.text)
    parts, seconds = [], 0.0
    for part in (slice(start, start + BATCH) for start in range(0, len(items), BATCH)):
        labels, keys = [item["label"] for item in items[part]], [item["key"] for item in items[part]]
        begun = time.thread_time()
        parts.append(generate(model, latents[part, 0], labels, keys, settings.run.seed))
        seconds += time.thread_time() - begun
    clips, priors = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    found = compare(folder, clips, latents, *look(settings.vae, settings.evaluate, clips))
    found["prior_error"] = [latent_error(prior, true) for prior, true in zip(priors, latents, strict=True)]
    write_json(f"{folder}/measured/{measurement.key}.json", found | {"seconds": seconds / len(items)})


def look(vae: VaeSettings, evaluate: EvaluateSettings, latents: Tensor) -> tuple[np.ndarray, Arrays]:
    """Frames uint8 (N, F, H, W, 3) of latents (N, F, C, h, w), and the detector's features and probabilities."""
    decoder = load_vae(vae.path, vae.dtype, "cpu")
    frames = torch.cat([decoder.decode_clips(part, vae.batch_frames) for part in latents.split(BATCH)]).numpy()
    detector = load_network("detector", evaluate)
    parts = [detector(frames[start : start + BATCH], []) for start in range(0, len(frames), BATCH)]
    return frames, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(folder: str, clips: Tensor, latents: Tensor, frames: np.ndarray, seen: Arrays) -> dict[str, Any]:
    """Numbers for each generated clip against the true latents and truth.npz; look() gives `frames` and `seen`."""
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        first, motion = (stored[name][: len(clips)] for name in ("first", "motion"))
    return {
        "features": np.round(seen["features"].astype(float), 6).tolist(),
        "probabilities": seen["probabilities"].astype(float).tolist(),
        "latent_error": [latent_error(clip, true) for clip, true in zip(clips, latents, strict=True)],
        "motion_ratio": [
            motion_ratio(frame_difference(clip), float(true)) for clip, true in zip(frames, motion, strict=True)
        ],
        "psnr_first_frame": [psnr(clip[0], true) for clip, true in zip(frames, first, strict=True)],
    }
