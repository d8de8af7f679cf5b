"""Run the training on the cluster: ask Ray Train for workers, and start them again after a failure."""

import logging
import math
import os
import signal
import sys
import uuid
from typing import Any

import ray.train
import ray.train.torch

from ..errors import JobFailed
from ..runtime.connect import start_ray
from ..runtime.placement import check_room, check_room_online, needs, selector
from ..runtime.progress import duration
from ..storage.files import read_json, resolve, write_json
from . import checkpoint
from .failures import FailurePolicy, explained, stop_through
from .plan import CHECKPOINTS, Run, RunStatus, record, run_status, training_flops
from .worker import train_worker

log = logging.getLogger("train")

# With a range of workers Ray Train asks for as many as fit; for a while it still counts a node that was just lost.
RANGE_START_S = 30


def run_training(run: Run) -> dict[str, Any]:
    """Train, or go on where the run stopped; return its summary.json. Raises UserError or JobFailed."""
    summary = f"{run.spec.folder}/summary.json"
    if run_status(run) == RunStatus.DONE:
        log.info("nothing to do: %s has been trained already, with these settings", run.spec.export)
        return dict(read_json(summary))
    start_ray(run.settings.cluster)
    resources = run.spec.resources
    check_room("train", resources, resources.workers_range[0], f"cluster.train.workers = {resources.workers}")
    if run.spec.data.online:
        check_room_online(run.settings.cluster)
    stop_key = f"framebridge-stop-{uuid.uuid4().hex}"
    try:
        with checkpoint.room_needed(run.spec.folder), stop_through(stop_key):
            record(run)
            while "moved" in (found := dict(make_trainer(run, stop_key).fit().return_value)):
                log.info("%s: going on, with a checkpoint of that step", found["moved"])
    except ray.train.TrainingFailedError as error:
        raise explained(run, error) from error
    if "asked" in found:
        log.info("%s, with a checkpoint in %s", found["asked"], run.spec.folder)
        sys.exit(signal.SIGTERM)
    if "stopped" in found:
        raise JobFailed(f"{found['stopped']}; the last checkpoint is in {run.spec.folder}")
    write_json(summary, found)
    log.info("%s: %d steps in %s", run.spec.export, found["steps"], duration(found["seconds"]))
    return found


def make_trainer(run: Run, stop_key: str) -> ray.train.torch.TorchTrainer:
    """The trainer that starts the workers, and starts them again after a failure."""
    resources, train = run.spec.resources, run.spec.train
    filesystem, inner = resolve(run.spec.folder)
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
            "spec": run.spec,
            "online": (run.cache, run.settings) if run.spec.data.online else None,
            "stop_key": stop_key,
            "flops": training_flops(run.model, run.spec.cache),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=resources.num_gpus > 0,
            resources_per_worker={"CPU": 0} | needs(resources),
            label_selector=selector(resources),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if resources.num_gpus > 0 else "gloo", timeout_s=resources.hang_timeout_s
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=inner,
            storage_filesystem=filesystem,
            # a node that does not come is not a worker's failure: without this limit Ray would ask for it for ever
            failure_config=ray.train.FailureConfig(
                max_failures=-1,
                controller_failure_limit=math.ceil(
                    (resources.max_failures + 1) * resources.start_timeout_s / wait_s - 1
                ),
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=train.keep_checkpoints,
                checkpoint_score_attribute="validation_loss" if train.keep_by == "validation_loss" else None,
                checkpoint_score_order="min",
            ),
            # counts the failures of workers, and prints them without tracebacks
            callbacks=[FailurePolicy(run.spec.folder, resources.max_failures)],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
