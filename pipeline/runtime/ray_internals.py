"""The one adapter to Ray's private and developer interfaces.

Each function wraps one name. tests/contracts/test_ray_internals.py checks that the installed Ray has it and that it
does what this project relies on. Nothing else imports a private module of Ray.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    import ray.data


class RunStorage(NamedTuple):
    """Where Ray Train keeps the checkpoints of a run."""

    filesystem: "pafs.FileSystem"
    folder: str  # within the file system
    path_of: Callable[[str], str]  # name of a checkpoint -> its path within the file system


def recorded_address() -> str | None:
    """HOST:PORT of the cluster that `ray start` recorded on this machine; None if there is no record."""
    from ray._private.utils import read_ray_address

    return read_ray_address()


def put_key(key: str, value: bytes = b"1") -> None:
    """Write a key into the connected cluster's own store."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value)


def has_key(key: str) -> bool:
    """Whether the connected cluster's own store holds a key."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(key))


def is_preemption(error: Exception) -> bool:
    """Whether a worker of Ray Train ended because its node was taken away."""
    from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor

    return bool(_is_preempted_actor(error))


def is_startup_timeout(error: object) -> bool:
    """Whether Ray Train gave up waiting for room for its workers."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(error, WorkerGroupStartupTimeoutError)


def cause_of(error: Exception) -> Exception:
    """The error that the training function raised, which Ray Train wraps with its traceback as text."""
    return getattr(error, "_base_exc", error)


def run_storage() -> RunStorage:
    """The storage of the run that this training worker belongs to."""
    import ray.train

    storage = ray.train.get_context().get_storage()
    return RunStorage(storage.storage_filesystem, storage.experiment_fs_path, storage.build_checkpoint_path_from_name)


def set_last_arguments(dataset: "ray.data.Dataset", arguments: dict[str, Any]) -> None:
    """Set the Ray arguments of the tasks of a data set's last operator."""
    dataset._logical_plan.dag.ray_remote_args.update(arguments)
