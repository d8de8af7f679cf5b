"""Ray Train around the loop: ask the cluster for workers, start the loop on each, start it again after a failure."""

import logging
import threading
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import ray.train
import ray.train.torch
import torch

from ..data.cache.info import CacheSpec
from ..data.cache.manifest import Cache
from ..data.cache.pipeline import encoded
from ..data.cache.prior_outputs import prior_reader
from ..data.load.batches import TrainingBatch, training_batches, validation_batches
from ..data.load.mix import open_training_cache
from ..data.load.node_cache import keep_locally
from ..data.load.online import held_in_memory, made_while_training
from ..data.load.reader import Read, Source
from ..errors import JobFailed
from ..models.checkpoints.weights_hash import weights_hash
from ..models.files.paths import shipped_path
from ..models.prior import NeuralPrior
from ..runtime.metrics import show_training
from ..runtime.ray_internals import put_key
from ..schema import TEST, TRAIN
from ..settings import Settings, TrainSettings
from . import checkpoint
from .deepspeed.engine import start_engine
from .deepspeed.state import Ema, full_state, optimizer_keys, put_back, weights
from .export.write import write_export
from .failures import heartbeat, poll_stop_request, stop_watchdog
from .initial import Job, frozen_image_encoder, initial_model, load_frozen_prior, sections, uses_prior
from .loop import Batches, train_steps, validate
from .losses import Task, class_map, finetune_task, prior_task, replicated_error
from .plan import run_folder
from .ranks import MoveAsked, RankInfo, RunStopped, StopAsked
from .report.history import History
from .report.trackers import open_trackers

log = logging.getLogger("train")


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """What Ray Train calls on every worker."""
    quieten()
    settings = Settings.model_validate(config["settings"])
    try:
        with checkpoint.room_needed(run_folder(config["job"], settings)):
            return work(config["job"], settings, config["cache"], config["stop"], config["flops"])
    finally:
        stop_watchdog()


def work(job: Job, settings: Settings, found: Cache | CacheSpec, stop_key: str, flops: float) -> dict[str, Any] | None:
    """What every worker does, from its model to the export; rank 0 gives the summary."""
    _, train = sections(job, settings)
    context = ray.train.get_context()
    place = RankInfo(context.get_world_rank(), context.get_world_size(), device_of(settings))
    # `found` is the cache's spec or, with data.online, the planned clips
    cache = found if isinstance(found, Cache) else open_training_cache(settings.cache_path, settings.cache.mix, found)
    task, initialised_from = build_task(job, settings, cache.spec, place)
    saved_names = set(task.model.state_dict())  # CogVideoX makes its positions anew, and does not save them
    buffers = {name: value.clone() for name, value in task.model.named_buffers() if name in saved_names}
    parameters = sum(p.numel() for p in task.model.parameters())
    engine, ema, start = start_or_go_on(task, train, place)
    history = None
    if place.rank == 0:
        folder = run_folder(job, settings)
        show = partial(show_training, settings.run.name, job, train.global_batch)
        history = History(folder, start, train.steps, open_trackers(settings, folder), show)
        print(
            f"{parameters / 1e6:.2f} M parameters, {f'going on after step {start}' if start else initialised_from}",
            flush=True,
        )

    data = open_data(job, settings, cache, task, place, start)
    save = partial(checkpoint.save, engine, ema, train.optimizer, place.rank, place.workers, threading.Semaphore())
    if place.rank == 0:
        put_key(f"{stop_key}-training")
    ask = partial(poll_stop_request, stop_key, place.rank)
    beat = partial(heartbeat, settings.cluster.train.hang_timeout_s)
    try:
        train_steps(engine, task, train, data.batches, data.checks, history, save, place, start, ema, ask, beat, flops)
    except RunStopped as stopped:  # not raised: Ray Train would start it again, to the same end
        if history:
            history.close()
        kind = "moved" if isinstance(stopped, MoveAsked) else "asked" if isinstance(stopped, StopAsked) else "stopped"
        return {kind: str(stopped)}
    stop_watchdog()  # an export takes its time

    replicated = validate(engine, replicated_error, data.checks, place) if data.checks and job == "prior" else None
    with ema.in_place() if ema else nullcontext():
        state = full_state(engine, buffers)
    if history is None:
        return None
    history.close()
    summary: dict[str, Any] = {"job": job, "steps": train.steps, "parameters": parameters, "start": initialised_from}
    summary |= {"clips": len(data.training.rows), "held_out": len(data.held_out.rows), **history.summary()}
    if replicated is not None:
        summary["held_out_error"] = {"prior": history.last("validation_loss"), "replicated": replicated}
    write_export(job, settings, cache, state, summary)
    return summary


def start_or_go_on(task: Task, train: TrainSettings, place: RankInfo) -> tuple[Any, Ema | None, int]:
    """The engine around the task's model and the moving average of its weights, if any, as the last checkpoint has them;
    and the steps made. Every rank calls it."""
    saved = checkpoint.restore(place.rank, place.device)
    if saved and not saved.made_by(train.optimizer):
        raise JobFailed(
            f"train.optimizer = {train.optimizer}: the checkpoint of step {saved.step} was made by another one; delete the "
            "run's folder, or choose another --run.name"
        )
    if saved:  # buffers and frozen weights are made anew
        task.model.load_state_dict(dict(weights(saved.tensors)), strict=False)
    engine = start_engine(task.model, train, place.workers, place.device)
    ema = Ema(engine, train.ema_decay) if train.ema_decay else None
    if saved is None:
        return engine, ema, 0
    put_back(engine, saved.tensors, optimizer_keys(train.optimizer), saved.updates)
    if ema:
        ema.put_back(engine, saved.tensors)
    return engine, ema, saved.step


class Data(NamedTuple):
    """What a worker trains and validates on."""

    training: Source
    held_out: Source
    batches: Batches  # its part of the global batches from the first step to be made
    checks: list[TrainingBatch]  # its part of the held-out clips


def open_data(job: Job, settings: Settings, cache: Cache, task: Task, place: RankInfo, start: int) -> Data:
    """Clips of the cache, or of the stages that would make it (data.online), for this worker. Raises UserError."""
    _, train = sections(job, settings)
    node_cache, online = None, settings.data.online
    if not online:
        node_cache = keep_locally(cache, settings.cache, ray.train.get_context().get_local_world_size())
    text, read_prior = "text" in getattr(task.model, "conditions", ()), cached_prior(job, settings, cache)
    common = (settings.run.seed, text, read_prior, node_cache)
    training = Source(cache, cache.select(TRAIN), cache.spec.classes, train.label_dropout, *common)
    held_out = Source(cache, cache.select(TEST).spread(train.validate_clips), cache.spec.classes, 0.0, *common)
    size, micro, (rank, workers, _) = train.global_batch, train.micro_batch, place
    steps = range(start, train.steps)
    if online:
        stages = partial(encoded, settings=settings, actors=max(1, settings.cluster.encode.actors // workers))
        training = made_while_training(training, stages, size, rank, workers, steps)
        held_out = held_in_memory(held_out, stages)
    batches = training_batches(training, size, micro, rank, workers, steps)
    return Data(training, held_out, batches, validation_batches(held_out, min(micro, size), rank, workers))


def quieten() -> None:
    """Leave a worker's console to the progress lines."""
    logging.disable(logging.INFO)  # Ray Train tells of every report and checkpoint, on every worker
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


def build_task(job: Job, settings: Settings, spec: CacheSpec, place: RankInfo) -> tuple[Task, str]:
    """The job's model with its initial weights, and its loss; what the weights start from, in words."""
    model, initialised_from = initial_model(job, settings, spec)
    _, train = sections(job, settings)
    if train.compile:
        model.backbone.compile()
    if isinstance(model, NeuralPrior):
        return prior_task(model), initialised_from
    dtype = torch.bfloat16 if settings.train.precision == "bfloat16" else torch.float32
    image_encoder = None
    if "image_features" in model.conditions:
        image_encoder = frozen_image_encoder(settings, dtype, place.device)
    if not uses_prior(job, settings) or settings.bridge.cached_prior:
        return finetune_task(model, settings.bridge, image_encoder=image_encoder), initialised_from
    frozen, classes = load_frozen_prior(settings)
    frozen = frozen.to(place.device, dtype)
    return finetune_task(model, settings.bridge, frozen, class_map(spec.classes, classes)), initialised_from


def cached_prior(job: Job, settings: Settings, cache: Cache) -> Read | None:
    """What gives F_eta's cached output for a clip, if the job takes it from the cache. Raises UserError."""
    if not (uses_prior(job, settings) and settings.bridge.cached_prior):
        return None
    return prior_reader(cache, weights_hash(shipped_path(settings.prior_export)))


def device_of(settings: Settings) -> torch.device:
    """The worker's device; on a CPU, PyTorch gets as many threads as Ray set CPUs aside."""
    if settings.cluster.train.num_gpus > 0:
        return ray.train.torch.get_device()
    torch.set_num_threads(max(1, int(settings.cluster.train.num_cpus)))
    return torch.device("cpu")
