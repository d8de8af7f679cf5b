"""A training worker: from the spec to the export, with Ray Train around the loop."""

import logging
import threading
import warnings
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch

from ..data.cache.manifest import Cache
from ..data.cache.pipeline import encoded
from ..data.cache.prior_outputs import prior_reader
from ..data.load.batches import training_batches, validation_batches
from ..data.load.mix import open_training_cache
from ..data.load.node_cache import keep_locally
from ..data.load.online import held_in_memory, made_while_training
from ..data.load.reader import Source
from ..models.checkpoints.weights_hash import weights_hash
from ..models.files.paths import shipped_path
from ..runtime.metrics import show_training
from ..runtime.ray_internals import put_key
from ..schema import TEST, TRAIN
from ..settings import Settings, TrainResources
from . import checkpoint
from .engine import TrainingEngine
from .export.write import write_export
from .failures import heartbeat, poll_stop_request, stop_watchdog
from .initial import build_loss, initial_model
from .loop import RunControl, train_steps, validate
from .losses import replicated_error
from .ranks import MoveAsked, RankInfo, RunStopped, StopAsked, StopRequest
from .report.history import History
from .report.meter import Meter, Row
from .report.trackers import open_trackers
from .spec import TrainSpec


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train calls this on every worker. Returns rank 0's summary, or on all ranks why they stopped together."""
    spec: TrainSpec = config["spec"]
    quieten()
    try:
        with checkpoint.room_needed(spec.folder):
            return train_and_export(spec, config["online"], config["stop_key"], config["flops"])
    except RunStopped as stopped:  # not raised: Ray Train would start it again, to the same end
        kind = "moved" if isinstance(stopped, MoveAsked) else "asked" if isinstance(stopped, StopAsked) else "stopped"
        return {kind: str(stopped)}
    finally:
        stop_watchdog()


def train_and_export(
    spec: TrainSpec, online: tuple[Cache, Settings] | None, stop_key: str, flops: float
) -> dict[str, Any] | None:
    """Train from the spec to the export; return rank 0's summary. Raises RunStopped on all ranks.

    `online`: with data.online the planned clips, and the settings of the stages that make them.
    """
    # The model, with its initial weights or those of the last checkpoint
    context = ray.train.get_context()
    rank = RankInfo(context.get_world_rank(), context.get_world_size(), device_of(spec.resources))
    model, initialised_from = initial_model(spec)
    parameters = sum(p.numel() for p in model.parameters())
    loss = build_loss(spec, model, rank.device)
    if spec.train.compile:
        model.backbone.compile()
    engine = TrainingEngine(model, spec.train, rank, checkpoint.restore(rank))

    # Its part of the global batches that are left, and of the held-out clips
    training, held_out = open_sources(spec, online, getattr(model, "conditions", ()), engine)
    size, micro, steps = spec.train.global_batch, spec.train.micro_batch, range(engine.steps, spec.train.steps)
    batches = training_batches(training, size, micro, rank.rank, rank.workers, steps)
    checks = validation_batches(held_out, min(micro, size), rank.rank, rank.workers)

    # The steps
    history = None
    if rank.rank == 0:
        show = partial(show_training, spec.run.name, spec.job, spec.train.global_batch)
        history = History(spec.folder, engine.steps, spec.train.steps, open_trackers(spec.run.track, spec.folder), show)
        begins = f"going on after step {engine.steps}" if engine.steps else initialised_from
        print(f"{parameters / 1e6:.2f} M parameters, {begins}", flush=True)
        put_key(f"{stop_key}-training")
    control = RayControl(stop_key, rank.rank, spec.resources.hang_timeout_s)
    try:
        train_steps(engine, loss, batches, checks, Meter(spec.train, rank, history, flops), control)
    except RunStopped:
        if history:
            history.close()
        raise
    stop_watchdog()  # an export takes its time

    # The export
    replicated = validate(engine, replicated_error, checks) if checks and spec.job == "prior" else None
    state = engine.export_state()
    if history is None:
        return None
    history.close()
    summary: dict[str, Any] = {"job": spec.job, "steps": spec.train.steps, "parameters": parameters}
    summary |= {"start": initialised_from, "clips": len(training.rows), "held_out": len(held_out.rows)}
    summary |= history.summary()
    if replicated is not None:
        summary["held_out_error"] = {"prior": history.last("validation_loss"), "replicated": replicated}
    write_export(spec, state, summary)
    return summary


class RayControl(RunControl):
    """Ray Train and the driver around the loop: checkpoints, a request to stop, and the watchdog of a hang."""

    def __init__(self, stop_key: str, rank: int, hang_timeout_s: int) -> None:
        self._stop_key, self._rank, self._hang_timeout_s = stop_key, rank, hang_timeout_s
        self._turn = threading.Semaphore()  # where the storage is slower than training, a save waits for the one before

    def heartbeat(self) -> None:
        """Restart the watchdog of a hang."""
        heartbeat(self._hang_timeout_s)

    def poll(self) -> StopRequest:
        """Ask the driver and Ray Train."""
        return poll_stop_request(self._stop_key, self._rank)

    def save(self, engine: TrainingEngine, row: Row) -> None:
        """Save a checkpoint; written in the background."""
        self._turn.acquire()
        checkpoint.save(engine.share(), engine.rank, row, self._turn.release)


def open_sources(
    spec: TrainSpec, online: tuple[Cache, Settings] | None, conditions: tuple[str, ...], engine: TrainingEngine
) -> tuple[Source, Source]:
    """This worker's training clips from the next step on, and the held-out clips. Raises UserError."""
    train, rank, cache, node_cache, read_prior = spec.train, engine.rank, None, None, None
    if online:
        cache, settings = online
    else:
        cache = open_training_cache(spec.cache_path, spec.caches.mix, spec.cache)
        node_cache = keep_locally(cache, spec.caches, ray.train.get_context().get_local_world_size())
    if spec.prior_export and spec.bridge.cached_prior:
        read_prior = prior_reader(cache, weights_hash(shipped_path(spec.prior_export)))
    common = (spec.run.seed, "text" in conditions, read_prior, node_cache)
    training = Source(cache, cache.select(TRAIN), spec.cache.classes, train.label_dropout, *common)
    held_out = Source(cache, cache.select(TEST).spread(train.validate_clips), spec.cache.classes, 0.0, *common)
    if online:
        actors = max(1, settings.cluster.encode.actors // rank.workers)
        data, vae, text, cluster = settings.data, settings.vae, settings.text, settings.cluster
        stages = partial(encoded, data=data, vae=vae, text=text, cluster=cluster, actors=actors)
        steps = range(engine.steps, train.steps)
        training = made_while_training(training, stages, train.global_batch, rank.rank, rank.workers, steps)
        held_out = held_in_memory(held_out, stages)
    return training, held_out


def quieten() -> None:
    """Leave a worker's console to the progress lines."""
    logging.disable(logging.INFO)  # Ray Train logs every report and checkpoint, on every worker
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


def device_of(resources: TrainResources) -> torch.device:
    """The worker's device; on a CPU, PyTorch gets as many threads as Ray set CPUs aside."""
    if resources.num_gpus > 0:
        return ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(resources.num_cpus)))
    return torch.device("cpu")
