"""The private names of Ray that this project uses exist and do what it relies on."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs as pafs
import pytest
import ray
import ray.data
import ray.train

from pipeline.runtime import ray_internals


def test_address_that_ray_start_recorded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import utils

    assert inspect.signature(utils.read_ray_address).parameters["temp_dir"].default is None
    recorded = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(utils, "get_ray_address_file", lambda folder: str(recorded))
    assert ray_internals.recorded_address() is None
    recorded.write_text("10.0.0.1:6379\n")
    assert ray_internals.recorded_address() == "10.0.0.1:6379"


@pytest.mark.ray
def test_key_written_to_the_cluster_is_seen_by_its_tasks(ray_cluster: None) -> None:
    assert not ray_internals.has_key("framebridge-contract")
    ray_internals.put_key("framebridge-contract")
    assert ray_internals.has_key("framebridge-contract")

    @ray.remote(num_cpus=0)
    def seen() -> tuple[bool, bool]:
        return ray_internals.has_key("framebridge-contract"), ray_internals.has_key("framebridge-other")

    assert ray.get(seen.remote()) == (True, False)


def test_worker_lost_with_its_node_is_a_preemption() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost, crashed = ray.exceptions.RayActorError(preempted=True), ray.exceptions.RayActorError()
    for error, expected in ((lost, True), (crashed, False)):
        assert ray_internals.is_preemption(error) is expected
        assert ray_internals.is_preemption(WorkerHealthCheckFailedError("gone", failure=error)) is expected
    assert not ray_internals.is_preemption(ValueError())


def test_workers_that_did_not_come_are_a_startup_timeout() -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    assert ray_internals.is_startup_timeout(WorkerGroupStartupTimeoutError(2))
    assert not ray_internals.is_startup_timeout(TimeoutError())


def test_error_of_the_training_function_is_unwrapped() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    error = ValueError("of the user")
    assert ray_internals.cause_of(UserExceptionWithTraceback(error, "its traceback")) is error
    assert ray_internals.cause_of(error) is error


def test_storage_of_a_run_says_where_checkpoints_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.storage import StorageContext

    context = StorageContext(str(tmp_path), "checkpoints", storage_filesystem=pafs.LocalFileSystem())
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: context))
    storage = ray_internals.run_storage()
    assert storage.folder == f"{tmp_path}/checkpoints" and isinstance(storage.filesystem, pafs.LocalFileSystem)
    assert storage.path_of("checkpoint_1") == f"{tmp_path}/checkpoints/checkpoint_1"
    assert callable(ray.train.TrainContext.get_storage)


@pytest.mark.ray
def test_last_operator_of_a_data_set_takes_arguments(ray_cluster: None) -> None:
    asked = {"num_cpus": 0, "memory": 2**20}
    made = ray.data.range(6).map_batches(lambda batch: batch, batch_size=3, **asked)
    made = made.repartition(target_num_rows_per_block=1, strict=True)
    ray_internals.set_last_arguments(made, asked)
    assert made._logical_plan.dag.ray_remote_args.items() >= asked.items()
    assert sorted(row["id"] for row in made.iter_rows()) == list(range(6))
    assert made.stats().count("MapBatches") and "->StreamingRepartition" in made.stats(), "they are not fused any more"
