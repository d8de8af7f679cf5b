"""Ray Train around the loop: ask the cluster for workers, start the loop on each, start it again after a failure."""

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import FrameType
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from pipeline.data.batches import (
    Read,
    training_batches,
    training_source,
    validation_batches,
    validation_source,
    with_text,
)
from pipeline.data.manifest import Cache, open_cache
from pipeline.data.prior_cache import prior_reader
from pipeline.models.image_to_video import VideoNetwork
from pipeline.models.paths import shipped_path
from pipeline.models.prior import NeuralPrior
from pipeline.monitoring import show_training
from pipeline.placement import check_room, needs, selector
from pipeline.ray_start import start_ray
from pipeline.schema import CacheInfo
from pipeline.settings import JobFailed, Settings, UserError
from pipeline.storage import read_json, resolve, write_json
from pipeline.train import checkpoint
from pipeline.train.engine import start_engine
from pipeline.train.history import History, duration
from pipeline.train.initial import frozen_image_encoder, load_frozen_prior, load_initial
from pipeline.train.loop import Place, RunStopped, StopAsked, train_steps, validate
from pipeline.train.run import (
    CHECKPOINTS,
    Run,
    export_config,
    record,
    run_folder,
    standing,
    uses_prior,
    weights_hash,
)
from pipeline.train.state import Ema, full_state, optimizer_keys, put_back, weights
from pipeline.train.tasks import (
    Job,
    Task,
    class_map,
    finetune_task,
    prior_task,
    replicated_error,
    sections,
    untrained,
)

log = logging.getLogger("train")


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
    record(run)
    stop_key = f"framebridge-stop-{uuid.uuid4().hex}"
    filesystem, inner = resolve(run.folder)
    _, train = sections(run.job, run.settings)
    # Ray Train hands these on to its controller and workers
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(resources.start_timeout_s)
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it prints every line of a worker twice
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": run.job, "settings": run.settings.model_dump(mode="json"), "stop": stop_key},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers if isinstance(resources.workers, int) else resources.workers_range,
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
                max_failures=resources.max_failures, controller_failure_limit=resources.max_failures
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
    )
    try:
        with stop_through(stop_key):
            result = trainer.fit()
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


def explained(run: Run, error: "ray.train.TrainingFailedError") -> Exception:
    """The cause of a failed run, for the user: what a worker or the controller raised."""
    resources = run.settings.cluster.train
    # what the training function raised comes wrapped, with its traceback as text
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    causes = [getattr(cause, "_base_exc", cause) for cause in failures.values()]
    for cause in causes:
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            return JobFailed(
                f"no room for cluster.train.workers = {resources.workers} in {resources.max_failures + 1} x "
                f"cluster.train.start_timeout_s = {resources.start_timeout_s:g} s; `ray status` says what is asked for and what "
                f"there is; lower it, or wait longer; the same command goes on from the last checkpoint in {run.folder}"
            )
        if isinstance(cause, ValueError):
            return UserError(str(cause)) if isinstance(cause, UserError) else JobFailed(str(cause))
    first = str(causes[0]).strip().splitlines()[-1] if causes else "unknown"
    return JobFailed(
        f"training failed more than cluster.train.max_failures = {resources.max_failures} times "
        f"({first}); the same command goes on from the last checkpoint in {run.folder}"
    )


@contextlib.contextmanager
def stop_through(key: str) -> Iterator[None]:
    """While workers train, SIGTERM does not end this process but asks them, by a key in the cluster's store, to save and end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    heard = nobody = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if nobody:
            sys.exit(number)
        if not heard:
            heard = True
            threading.Thread(target=tell, daemon=True).start()  # Ray may not be called from within a call of Ray

    def tell() -> None:
        nonlocal nobody
        if _internal_kv_exists(f"{key}-training"):
            log.info("told to stop: saving a checkpoint first")
            _internal_kv_put(key, b"1")
        else:
            nobody = True
            _thread.interrupt_main(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """What every worker does, from its model to the export; rank 0 gives the summary."""
    quieten()
    job: Job = config["job"]
    settings = Settings.model_validate(config["settings"])
    _, train = sections(job, settings)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), device_of(settings))
    folder, seed = run_folder(job, settings), settings.run.seed
    cache = open_cache(settings.cache_path)
    task, begins = build_task(job, settings, cache.info, place)
    saved_names = set(task.model.state_dict())  # CogVideoX makes its positions anew, and does not save them
    buffers = {name: value.clone() for name, value in task.model.named_buffers() if name in saved_names}
    parameters = sum(p.numel() for p in task.model.parameters())
    saved = checkpoint.restore(place.device)
    if saved:
        task.model.load_state_dict(
            dict(weights(saved.tensors)), strict=False
        )  # buffers and frozen weights are made anew
    engine = start_engine(task.model, train, place.workers, place.device)
    if saved:
        put_back(engine, saved.tensors, optimizer_keys(train.optimizer), saved.updates)
    ema = Ema(engine, train.ema_decay) if train.ema_decay else None
    if ema and saved:
        ema.put_back(engine, saved.tensors)
    start = saved.step if saved else 0
    show = partial(show_training, settings.run.name, job, train.global_batch)
    history = History(folder, start, train.steps, show) if place.rank == 0 else None
    if history:
        print(
            f"{parameters / 1e6:.2f} M parameters, {f'going on after step {start}' if start else begins}",
            flush=True,
        )

    read_prior = cached_prior(job, settings, cache)
    source = training_source(cache, cache.info["classes"], train.label_dropout, seed, read_prior)
    held_out = validation_source(cache, cache.info["classes"], train.validate_clips, seed, read_prior)
    if "text" in getattr(task.model, "conditions", ()):
        source, held_out = with_text(source, cache), with_text(held_out, cache)
    rank, workers = place.rank, place.workers
    batches = training_batches(source, train.global_batch, train.micro_batch, rank, workers, start, train.steps)
    checks = validation_batches(held_out, min(train.micro_batch, train.global_batch), rank, workers)
    save = partial(checkpoint.save, engine, ema, train.optimizer, place.rank, place.workers)
    if place.rank == 0:
        _internal_kv_put(f"{config['stop']}-training", b"1")
    asked = partial(_internal_kv_exists, config["stop"]) if place.rank == 0 else lambda: False
    try:
        train_steps(engine, task, train, batches, checks, history, save, place, start, ema, asked)
    except RunStopped as stopped:  # not raised: Ray Train would start it again, to the same end
        if history:
            history.close()
        return {"asked" if isinstance(stopped, StopAsked) else "stopped": str(stopped)}

    replicated = validate(engine, replicated_error, checks, place) if checks and job == "prior" else None
    with ema.in_place() if ema else nullcontext():
        state = full_state(engine, buffers)
    if history is None:
        return None
    history.close()
    exported = {name.removeprefix("backbone."): value for name, value in state.items()}
    checkpoint.export(f"{folder}/export", exported, export_config(job, settings, cache.info))
    summary: dict[str, Any] = {"job": job, "steps": train.steps, "parameters": parameters, "start": begins}
    summary |= {"clips": len(source.rows), "held_out": len(held_out.rows), **history.summary()}
    if replicated is not None:
        summary["held_out_error"] = {"prior": history.last("validation_loss"), "replicated": replicated}
    return summary


def quieten() -> None:
    """Leave a worker's console to the progress lines."""
    logging.disable(logging.INFO)  # Ray Train tells of every report and checkpoint, on every worker
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls


def build_task(job: Job, settings: Settings, info: CacheInfo, place: Place) -> tuple[Task, str]:
    """The job's model with its initial weights, and its loss; what the weights start from, in words."""
    model = untrained(job, settings, info)
    assert isinstance(model, NeuralPrior | VideoNetwork)
    model.initialise(settings.run.seed)
    begins = load_initial(job, settings, info, model.backbone)
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
