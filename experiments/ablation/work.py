"""What one task of the ablation does: train a model, or sample one and look at its clips. No Ray here.

ABLATION/models/NAME-sSEED/stepN    an export of the model, as jobs/finetune.py makes them; summary.json comes last
ABLATION/truth.npz                  the held-out clips as the VAE gives them back, and what the detector says of them
ABLATION/measured/KEY.json          a measurement, one number or feature a clip
"""

import io
import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

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
from pipeline.settings import SampleSettings, Settings
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

BATCH = 16  # clips sampled or decoded at once


def alone() -> RankInfo:
    """This process as the only worker, in a process group of its own, which DeepSpeed and the training loop ask for.

    The group stays for the tasks that Ray gives this process later: DeepSpeed keeps hold of it.
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
        self.losses[engine.steps] = row["loss"]
        if engine.steps in self.steps:
            state = {name.removeprefix("backbone."): value for name, value in engine.export_state().items()}
            export(f"{self.folder}/step{engine.steps}", state, self.config | {"steps": engine.steps})


def train_model(model: Model) -> dict[str, Any]:
    """Train as jobs/finetune.py does, in this process: its loss, its loop, its engine. Returns summary.json."""
    quieten()
    started, settings, rank = time.monotonic(), model.settings, alone()
    cache = open_cache(settings.cache_path)
    spec = train_spec(model.job, settings, cache.spec)
    train, folder = spec.train, settings.run.folder
    network, _ = initial_model(spec)
    engine = TrainingEngine(network, train, rank)
    source = Source(cache, cache.select(TRAIN), cache.spec.classes, train.label_dropout, spec.seed)
    batches = training_batches(source, train.global_batch, train.micro_batch, 0, 1, range(train.steps))
    exports = Exports(spec, folder, model.keep)
    train_steps(engine, build_loss(spec, network, rank.device), batches, [], Meter(train, rank), exports)
    summary = {"losses": exports.losses, "seconds": time.monotonic() - started, "clips": len(source.rows)}
    write_json(f"{folder}/summary.json", summary)
    return summary


def held_out(settings: Settings, cache: Cache) -> list[Item]:
    return held_out_items(cache, settings.ablate.clips)


def latents_of(cache: Cache, items: list[Item]) -> torch.Tensor:
    """Scaled posterior means (N, F, C, h, w) float32."""
    means = np.stack([read_latent(cache.path, item["row"])[0].astype(np.float32) for item in items if item["row"]])
    return torch.from_numpy(means) * cache.spec.scaling_factor


def prepare(settings: Settings) -> None:
    """The truth that clips are measured against, the measurement of still images, and the moments for Analytic-Init."""
    torch.set_num_threads(1)
    cache, folder = open_cache(settings.cache_path), folder_of(settings)
    moments = read_moments(cache.path, cache.select(TRAIN), cache.spec.scaling_factor)
    save_moments(f"{folder}/moments", moments, cache.spec.fingerprint)
    latents = latents_of(cache, held_out(settings, cache))
    frames, seen = look(settings, latents)
    stream = io.BytesIO()
    motion = np.array([frame_difference(clip) for clip in frames])
    np.savez(stream, allow_pickle=False, first=frames[:, 0], motion=motion, **seen)
    write_bytes(f"{folder}/truth.npz", stream.getvalue())
    still = replicate(latents[:, 0], latents.shape[1])
    write_json(f"{folder}/measured/{STILL}.json", compare(settings, folder, still, latents) | {"seconds": 0.0})


def measure(measurement: Measurement, folder: str) -> dict[str, Any]:
    """Sample and compare; gives what it writes to FOLDER/measured/KEY.json: numbers by clip, seconds of sampling a clip."""
    torch.set_num_threads(1)
    settings = measurement.model.settings
    exports = find_exports(f"{settings.run.folder}/step{measurement.step}", settings.bridge, settings.run.folder)
    sample = SampleSettings.model_validate(settings.sample.model_dump() | measurement.sample)
    cache = open_cache(settings.cache_path)
    items = held_out(settings, cache)[: measurement.clips]
    latents, sampler = latents_of(cache, items), load_for_sampling(exports, sample, settings.vae, settings.text)
    clips, priors, seconds = [], [], 0.0
    for part in (slice(start, start + BATCH) for start in range(0, len(items), BATCH)):
        labels, keys = [item["label"] for item in items[part]], [item["key"] for item in items[part]]
        begun = time.thread_time()
        made = generate(sampler, latents[part, 0], labels, keys, settings.run.seed)
        seconds += time.thread_time() - begun
        clips.append(made.clip)
        priors.append(made.prior)
    found = compare(settings, folder, torch.cat(clips), latents) | {"seconds": seconds / len(items)}
    ends = zip(torch.cat(priors), latents, strict=True)
    found["prior_error"] = [latent_error(prior, true) for prior, true in ends]
    write_json(f"{folder}/measured/{measurement.key}.json", found)
    return found


def look(settings: Settings, latents: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Frames uint8 (N, F, H, W, 3) of latents (N, F, C, h, w), and the detector's features and probabilities."""
    vae = load_vae(settings.vae.path, settings.vae.dtype, "cpu")
    frames = torch.cat([vae.decode_clips(part, settings.vae.batch_frames) for part in latents.split(BATCH)]).numpy()
    assert settings.evaluate.detector is not None
    detector = load_network("detector", settings.evaluate)
    parts = [detector(frames[start : start + BATCH], []) for start in range(0, len(frames), BATCH)]
    return frames, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compare(settings: Settings, folder: str, clips: torch.Tensor, latents: torch.Tensor) -> dict[str, Any]:
    """Numbers by clip of generated latents (N, F, C, h, w), against the true ones and FOLDER/truth.npz."""
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        truth = {name: stored[name][: len(clips)] for name in stored.files}
    frames, seen = look(settings, clips)
    moves = [
        motion_ratio(frame_difference(clip), float(true)) for clip, true in zip(frames, truth["motion"], strict=True)
    ]
    return {
        "features": np.round(seen["features"].astype(float), 6).tolist(),
        "probabilities": seen["probabilities"].astype(float).tolist(),
        "latent_error": [latent_error(clip, true) for clip, true in zip(clips, latents, strict=True)],
        "motion_ratio": moves,
        "psnr_first_frame": [psnr(clip[0], first) for clip, first in zip(frames, truth["first"], strict=True)],
    }
