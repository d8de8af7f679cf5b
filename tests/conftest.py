"""Fixtures that several folders share."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# A folder of its own for every Ray cluster that this process starts: the tests find no other cluster of this machine,
# whether of a person or of a second process of tests. Short, because the path of a socket may have 107 characters.
RAY_FOLDER = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
os.environ["RAY_TMPDIR"] = RAY_FOLDER.name
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with a tiny cache in it."""
    from helpers.tiny_cache import tiny_settings, write_cache

    folder = tmp_path_factory.mktemp("storage")
    write_cache(tiny_settings(folder))
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One real local Ray cluster for the whole test session."""
    import ray

    from pipeline.runtime.connect import process_setup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Ray's own notice about GPU environment variables
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=True,
            runtime_env={
                "env_vars": {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                "worker_process_setup_hook": process_setup(),
            },
        )
    yield
    ray.shutdown()
