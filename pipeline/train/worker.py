"""Ray Train around the loop: ask the cluster for workers, start the loop on each, start it again after a failure."""

import logging
import math
import os
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import ray.train
import ray.train.torch
import torch
from ray.experimental.internal_kv import _internal_kv_put

from pipeline.data.batches import (
    Read,
    Source,
    TrainingBatch,
    training_batches,
    training_source,
    validation_batches,
    validation_source,
    with_text,
)
from pipeline.data.kept import keep_locally
from pipeline.data.manifest import Cache
from pipeline.data.online import held_in_memory, open_training_data, training_clips
from pipeline.data.prior_cache import prior_reader
from pipeline.models.image_to_video import VideoNetwork
from pipeline.models.paths import shipped_path
from pipeline.models.prior import NeuralPrior
from pipeline.models.weights import State
from pipeline.monitoring import show_training
from pipeline.placement import check_room, check_room_online, needs, selector
from pipeline.ray_start import start_ray
from pipeline.schema import CacheInfo
from pipeline.settings import JobFailed, Settings, TrainSettings
from pipeline.storage import read_json, resolve, write_json
from pipeline.train import checkpoint
from pipeline.train.adapters import merged
from pipeline.train.engine import start_engine
from pipeline.train.failures import GoOnOrEnd, alive, asleep, explained, stop_through, told
from pipeline.train.history import History, duration
from pipeline.train.initial import frozen_image_encoder, load_frozen_prior, load_initial
from pipeline.train.loop import Batches, MoveAsked, Place, RunStopped, StopAsked, train_steps, validate
from pipeline.train.model_card import model_card
from pipeline.train.run import (
    CHECKPOINTS,
    MADE_WITH,
    Run,
    export_config,
    record,
    run_folder,
    standing,
    training_flops,
    uses_prior,
    weights_hash,
)
from pipeline.train.state import Ema, full_state, optimizer_keys, put_back, weights
from pipeline.train.tasks import (
    Job,
    Task,
    class_map,
    finetune_task,
    freeze,
    prior_task,
    replicated_error,
    sections,
    untrained,
)
from pipeline.train.trackers import open_trackers

log = logging.getLogger("train")

# With a range of workers Ray Train asks for as many as there is room for; where a node was just lost, it does not know yet.
RANGE_START_S = 30


def run_training(run: Run) -> dict[str, Any]:
    """Train, or go on where the run stopped, and give its summary.json. Raises UserError or JobFailed."""
    summary = f"{run.folder}/summary.json"
    if standing(run) == "done":
        log.info("nothing to do: %s has been trained already, with these settings", run.export)
        found: dict[str, Any] = read_json(summary)
        return found
    start_ray(run.settings)
    resources = run.settings.cluster.train
    check_room(run.settings, "train", resources.workers_range[0], f"cluster.train.workers = {resources.workers}")
    if run.settings.data.online:
        check_room_online(run.settings)
    stop_key = f"framebridge-stop-{uuid.uuid4().hex}"
    try:
        with checkpoint.room_needed(run.folder), stop_through(stop_key):
            record(run)
            result = make_trainer(run, stop_key).fit()
            while "moved" in result.return_value:
                log.info("%s: going on, with a checkpoint of that step", result.return_value["moved"])
                result = make_trainer(run, stop_key).fit()
    except ray.train.TrainingFailedError as error:
        raise explained(run, error) from error
    if "asked" in result.return_value:
        log.info("%s, with a checkpoint in %s", result.return_value["asked"], run.folder)
        sys.exit(signal.SIGTERM)
    if "stopped" in result.return_value:
        raise JobFailed(f"{result.return_value['stopped']}; the last checkpoint is in {run.folder}")
    write_json(summary, result.return_value)
    log.info(
        "%s: %d steps in %s",
        run.export,
        result.return_value["steps"],
        duration(result.return_value["seconds"]),
    )
    return dict(result.return_value)


def make_trainer(run: Run, stop_key: str) -> ray.train.torch.TorchTrainer:
    """What starts the workers, and starts them again."""
    resources = run.settings.cluster.train
    filesystem, inner = resolve(run.folder)
    _, train = sections(run.job, run.settings)
    by_score = train.keep_by == "validation_loss"
    least, most = resources.workers_range
    wait_s = resources.start_timeout_s if least == most else min(RANGE_START_S, resources.start_timeout_s)
    # Ray Train hands these on to its controller and workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(wait_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(resources.hang_timeout_s)
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it prints every line of a worker twice
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "job": run.job,
            "settings": run.settings.model_dump(mode="json"),
            "stop": stop_key,
            "flops": training_flops(run.model, run.cache.info),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=resources.num_gpus > 0,
            resources_per_worker={"CPU": 0} | needs(run.settings, "train"),
            label_selector=selector(run.settings, "train"),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if resources.num_gpus > 0 else "gloo", timeout_s=resources.hang_timeout_s
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=inner,
            storage_filesystem=filesystem,
            # nodes that do not come are no failure of a worker: without a limit of its own Ray would ask for them for ever
            failure_config=ray.train.FailureConfig(
                max_failures=-1,
                controller_failure_limit=math.ceil(
                    (resources.max_failures + 1) * resources.start_timeout_s / wait_s - 1
                ),
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=train.keep_checkpoints,
                checkpoint_score_attribute="validation_loss" if by_score else None,
                checkpoint_score_order="min",
            ),
            # counts the workers' failures, and tells of them without tracebacks
            callbacks=[GoOnOrEnd(run.folder, resources.max_failures)],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """What Ray Train calls on every worker."""
    quieten()
    settings = Settings.model_validate(config["settings"])
    try:
        with checkpoint.room_needed(run_folder(config["job"], settings)):
            return work(config["job"], settings, config["stop"], config["flops"])
    finally:
        asleep()


def work(job: Job, settings: Settings, stop_key: str, flops: float) -> dict[str, Any] | None:
    """What every worker does, from its model to the export; rank 0 gives the summary."""
    _, train = sections(job, settings)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), device_of(settings))
    cache = open_training_data(settings)
    task, begins = build_task(job, settings, cache.info, place)
    saved_names = set(task.model.state_dict())  # CogVideoX makes its positions anew, and does not save them
    buffers = {name: value.clone() for name, value in task.model.named_buffers() if name in saved_names}
    parameters = sum(p.numel() for p in task.model.parameters())
    engine, ema, start = start_or_go_on(task, train, place)
    history = None
    if place.rank == 0:
        folder = run_folder(job, settings)
        show = partial(show_training, settings.run.name, job, train.global_batch)
        history = History(folder, start, train.steps, open_trackers(settings, folder), show)
        print(f"{parameters / 1e6:.2f} M parameters, {f'going on after step {start}' if start else begins}", flush=True)

    data = open_data(job, settings, cache, task, place, start)
    save = partial(checkpoint.save, engine, ema, train.optimizer, place.rank, place.workers, threading.Semaphore())
    if place.rank == 0:
        _internal_kv_put(f"{stop_key}-training", b"1")
    ask = partial(told, stop_key, place.rank)
    beat = partial(alive, settings.cluster.train.hang_timeout_s)
    try:
        train_steps(engine, task, train, data.batches, data.checks, history, save, place, start, ema, ask, beat, flops)
    except RunStopped as stopped:  # not raised: Ray Train would start it again, to the same end
        if history:
            history.close()
        kind = "moved" if isinstance(stopped, MoveAsked) else "asked" if isinstance(stopped, StopAsked) else "stopped"
        return {kind: str(stopped)}
    asleep()  # an export takes its time

    replicated = validate(engine, replicated_error, data.checks, place) if data.checks and job == "prior" else None
    with ema.in_place() if ema else nullcontext():
        state = full_state(engine, buffers)
    if history is None:
        return None
    history.close()
    summary: dict[str, Any] = {"job": job, "steps": train.steps, "parameters": parameters, "start": begins}
    summary |= {"clips": len(data.training.rows), "held_out": len(data.held_out.rows), **history.summary()}
    if replicated is not None:
        summary["held_out_error"] = {"prior": history.last("validation_loss"), "replicated": replicated}
    write_export(job, settings, cache, state, summary)
    return summary


def start_or_go_on(task: Task, train: TrainSettings, place: Place) -> tuple[Any, Ema | None, int]:
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


def open_data(job: Job, settings: Settings, cache: Cache, task: Task, place: Place, start: int) -> Data:
    """Clips of the cache, or of the stages that would make it (data.online), for this worker. Raises UserError."""
    _, train = sections(job, settings)
    classes, seed = cache.info["classes"], settings.run.seed
    read_prior = cached_prior(job, settings, cache)
    kept = None
    if not settings.data.online:
        kept = keep_locally(cache, settings.cache, ray.train.get_context().get_local_world_size())
    training = training_source(cache, classes, train.label_dropout, seed, read_prior, kept)
    held_out = validation_source(cache, classes, train.validate_clips, seed, read_prior, kept)
    if "text" in getattr(task.model, "conditions", ()):
        training, held_out = with_text(training, cache, kept), with_text(held_out, cache, kept)
    size, micro, (rank, workers, _) = train.global_batch, train.micro_batch, place
    clips = None
    if settings.data.online:
        clips = training_clips(training, settings, size, rank, workers, start, train.steps)
        held_out = held_in_memory(held_out, settings, workers)
    batches = training_batches(training, size, micro, rank, workers, start, train.steps, clips)
    return Data(training, held_out, batches, validation_batches(held_out, min(micro, size), rank, workers))


def write_export(
    job: Job, settings: Settings, cache: Cache, learned: Mapping[str, torch.Tensor], summary: Mapping[str, Any]
) -> None:
    """The export of a finished run, with its card."""
    folder = run_folder(job, settings)
    config = export_config(job, settings, cache.info)
    card = model_card(config, read_json(f"{folder}/{MADE_WITH}"), settings.data.source, summary)
    checkpoint.export(f"{folder}/export", whole_state(job, settings, cache.info, learned), config, card)


def quieten() -> None:
    """Leave a worker's console to the progress lines."""
    logging.disable(logging.INFO)  # Ray Train tells of every report and checkpoint, on every worker
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


def build_task(job: Job, settings: Settings, info: CacheInfo, place: Place) -> tuple[Task, str]:
    """The job's model with its initial weights, and its loss; what the weights start from, in words."""
    model, begins = initial_model(job, settings, info)
    _, train = sections(job, settings)
    if train.compile:
        model.backbone.compile()
    if isinstance(model, NeuralPrior):
        return prior_task(model), begins
    dtype = torch.bfloat16 if settings.train.precision == "bfloat16" else torch.float32
    image_encoder = None
    if "image_features" in model.conditions:
        image_encoder = frozen_image_encoder(settings, dtype, place.device)
    if not uses_prior(job, settings) or settings.bridge.cached_prior:
        return finetune_task(model, settings.bridge, image_encoder=image_encoder), begins
    frozen, classes = load_frozen_prior(settings)
    frozen = frozen.to(place.device, dtype)
    return finetune_task(model, settings.bridge, frozen, class_map(info["classes"], classes)), begins


def initial_model(job: Job, settings: Settings, info: CacheInfo) -> tuple[NeuralPrior | VideoNetwork, str]:
    """The job's model with its initial weights, those that are not trained frozen; what they start from, in words."""
    model = untrained(job, settings, info)
    assert isinstance(model, NeuralPrior | VideoNetwork)
    model.initialise(settings.run.seed)
    begins = load_initial(job, settings, info, model.backbone)
    freeze(job, settings, model.backbone)
    return model, begins


def whole_state(job: Job, settings: Settings, info: CacheInfo, learned: Mapping[str, torch.Tensor]) -> State:
    """The backbone's state for an export: what was trained (names of the job's model), frozen weights as they came, before
    any rounding to bf16, and adapters merged in.
    """
    _, train = sections(job, settings)
    state = dict(learned)
    if train.trainable is not None or train.lora.rank is not None:
        state = initial_model(job, settings, info)[0].state_dict() | state
    return merged({name.removeprefix("backbone."): value for name, value in state.items()}, train.lora)


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
