"""Find or start the Ray cluster of a job."""

import logging
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable

from ..errors import UserError
from ..settings import ClusterSettings
from ..storage import s3
from .ray_internals import recorded_address

TRACKING = ("WANDB_", "MLFLOW_")  # variables with the address and key of run.track's services


def start_ray(cluster: ClusterSettings) -> None:
    """Connect to the cluster of RAY_ADDRESS, of the submitted job or of `ray start`, else start one on this machine.

    Does nothing if this process is connected. Raises UserError if no cluster answers at RAY_ADDRESS, or if the settings
    ask for GPUs that this machine, on its own, does not have.
    """
    import ray

    if ray.is_initialized():
        return
    asked = {name: getattr(stage, "num_gpus", 0) for name, stage in cluster}
    gpus = [f"cluster.{name}.num_gpus = {number:g}" for name, number in asked.items() if number]
    variables = {"OMP_NUM_THREADS": "1"} if gpus else {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    # A submitted job's own variables are in this process's environment already, and Ray refuses to set one twice.
    new = {name: value for name, value in variables.items() if name not in os.environ}
    recorded = recorded_address()  # Ray would wait for a dead cluster
    address = os.environ.get("RAY_ADDRESS") or (recorded if recorded and _answers(recorded) else "local")
    nobody = UserError(
        f"RAY_ADDRESS = {address}: no Ray cluster answers there; start one with `ray start --head`, or unset "
        "RAY_ADDRESS to use this machine alone"
    )
    if not _answers(address):
        raise nobody
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
            raise nobody from error
    signal.signal(signal.SIGTERM, when_stopped)  # Ray has set its own
    if address == "local" and gpus and not ray.cluster_resources().get("GPU"):
        ray.shutdown()
        raise UserError(
            f"{gpus[0]} asks for GPUs and this machine has none; set it to 0 (--recipe demo does), or name a cluster "
            "that has some with RAY_ADDRESS"
        )


def process_setup() -> Callable[[], None]:
    """Return the function that every process of the job runs before its work.

    It sets the variables of S3 and of trackers that this process has; among `env_vars`, Ray would show them in its
    dashboard and logs. It puts the job into log lines. And it sets RAY_ADDRESS to its own cluster: Ray Train looks up
    an address to watch its controller, and on a machine with several clusters it may find another one, miss the
    controller there, and end the training.
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
    """Show Ray Data's progress bars on terminals only: in a log they fill a page every ten seconds."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


def _answers(address: str) -> bool:
    """Whether something listens at `address`, if it is HOST:PORT; Ray takes minutes to find that out."""
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)", address)
    try:
        if place is not None:
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
    except OSError:
        return False
    return True
