"""The one place where a job finds or starts its Ray cluster."""

import logging
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable

from ..errors import UserError
from ..settings import Settings
from ..storage import s3
from .ray_internals import recorded_address

TRACKING = ("WANDB_", "MLFLOW_")  # where run.track reports to, and with which key


def start_ray(settings: Settings) -> None:
    """Connect to the cluster of RAY_ADDRESS, of the submitted job or of `ray start`, else start one on this
    machine.

    Does nothing if this process is connected. Raises UserError if there is no cluster at RAY_ADDRESS, or if
    the settings ask for GPUs that this machine, on its own, does not have.
    """
    import ray

    if ray.is_initialized():
        return
    wanted = _gpus(settings)
    variables = {"OMP_NUM_THREADS": "1"} if wanted else {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    # a submitted job's own variables are in this process's environment already, and Ray refuses to set one
    # twice
    new = {name: value for name, value in variables.items() if name not in os.environ}
    address = os.environ.get("RAY_ADDRESS") or _started_here() or "local"
    if not _answers(address):
        raise UserError(_nobody(address))
    alone = address == "local"
    when_stopped = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's own notice about GPU environment variables
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": new, "worker_process_setup_hook": process_setup()},
                logging_level=logging.WARNING,
            )
        except ConnectionError as error:
            raise UserError(_nobody(address)) from error
    signal.signal(signal.SIGTERM, when_stopped)  # Ray has put its own in its place
    if alone and wanted and not ray.cluster_resources().get("GPU"):
        ray.shutdown()
        raise UserError(
            f"{wanted} asks for GPUs and this machine has none; set it to 0 (--recipe demo does), or name a "
            "cluster that has some with RAY_ADDRESS"
        )


def process_setup() -> Callable[[], None]:
    """What every process of the job does before its work: it takes this process's variables of S3 and of trackers, which Ray
    would show in its dashboard and logs if they were among `env_vars`, names its own cluster in RAY_ADDRESS, and says in
    its log of which job and stage a line is.

    Ray Train watches its controller through an address that it looks up anew. On a machine with more than one cluster it
    may find another's, in which that controller does not exist, and end the training.
    """
    variables = s3.environment()
    variables |= {name: value for name, value in os.environ.items() if name.startswith(TRACKING)}

    def set_up() -> None:
        import ray

        os.environ.update(variables)
        context = ray.get_runtime_context()
        os.environ["RAY_ADDRESS"] = context.gcs_address
        logging.basicConfig(format=f"%(asctime)s job {context.get_job_id()} %(name)s: %(message)s", datefmt="%H:%M:%S")

    return set_up


def bars_for_people_only() -> None:
    """Ray Data's progress bars on a terminal; into a log they would go as a page every ten seconds."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


def _started_here() -> str | None:
    """The cluster that `ray start` recorded on this machine, if it still answers; Ray would wait for a dead one."""
    recorded = recorded_address()
    return recorded if recorded and _answers(recorded) else None


def _nobody(address: str) -> str:
    return (
        f"RAY_ADDRESS = {address}: no Ray cluster answers there; start one with `ray start --head`, or unset RAY_ADDRESS "
        "to use this machine alone"
    )


def _answers(address: str) -> bool:
    """False if `address` is HOST:PORT and nothing listens there, which takes Ray minutes to find out."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)", address)
    if place is None:
        return True
    try:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()
    except OSError:
        return False
    return True


def _gpus(settings: Settings) -> str:
    """The first setting that asks for GPUs; "" if none does."""
    cluster = settings.cluster
    for name, stage in (("encode", cluster.encode), ("train", cluster.train), ("sample", cluster.sample)):
        if stage.num_gpus > 0:
            return f"cluster.{name}.num_gpus = {stage.num_gpus:g}"
    return ""
