"""A training worker is killed, the latest checkpoint damaged: the run goes on from a whole one to the same weights, no
step twice."""

import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from tiny_cache import tiny_settings, write_cache

from pipeline.settings import JobFailed, Settings
from pipeline.train.history import HISTORY, read_history
from pipeline.train.run import CHECKPOINTS, prepare, standing
from pipeline.train.worker import run_training

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]  # four starts of a worker group; a busy machine is slow

STEPS, EVERY = 60, 10


def settings(storage: Path, *more: str) -> Settings:
    return tiny_settings(
        storage,
        f"--train.steps={STEPS}",
        f"--train.checkpoint_every={EVERY}",
        "--train.validate_every=10",
        *more,
    )


def workers() -> list[psutil.Process]:
    """The Ray Train workers of this test's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:  # it has ended in the meantime
            continue
    return found


def checkpoints(run_folder: str) -> set[str]:
    """Those that Ray Train has committed, from what it would resume by."""
    snapshot = Path(run_folder, CHECKPOINTS, "checkpoint_manager_snapshot.json")
    return set(re.findall(r"checkpoint_[\d_.-]+\d", snapshot.read_text())) if snapshot.exists() else set()


def kill_after_checkpoint(run_folder: str, times: int, killed: list[int]) -> None:
    """Each time a new checkpoint has been committed, kill the worker of the highest pid."""
    seen: set[str] = set()
    deadline = time.monotonic() + 600
    while len(killed) < times and time.monotonic() < deadline:
        now = checkpoints(run_folder)
        alive = [process for process in workers() if process.pid not in killed]
        if now - seen and len(alive) == 2:
            time.sleep(0.1)  # some steps into the next stretch
            victim = max(alive, key=lambda process: process.pid)
            victim.send_signal(signal.SIGKILL)
            killed.append(victim.pid)
            victim.wait(timeout=30)
            seen = checkpoints(run_folder)
        time.sleep(0.02)


def weights(folder: str) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(f"{folder}/export/model.safetensors").items()}


def test_killed_twice_damaged_and_started_again(ray_cluster: None, tmp_path: Path) -> None:
    write_cache(settings(tmp_path))
    undisturbed = prepare(
        "finetune", settings(tmp_path, "--run.name=undisturbed", f"--cache.path={tmp_path}/tiny/cache")
    )
    run_training(undisturbed)
    reference = read_history(f"{undisturbed.folder}/{HISTORY}")

    disturbed = prepare("finetune", settings(tmp_path, "--cluster.train.max_failures=1"))
    killed: list[int] = []
    killer = threading.Thread(target=kill_after_checkpoint, args=(disturbed.folder, 2, killed))
    killer.start()
    with pytest.raises(JobFailed, match=r"more than cluster.train.max_failures = 1 times .*goes on from the last"):
        run_training(disturbed)
    killer.join()
    assert len(killed) == 2
    assert standing(disturbed) == "interrupted" and checkpoints(disturbed.folder)

    latest = Path(disturbed.folder, CHECKPOINTS, max(checkpoints(disturbed.folder)))
    damaged = next(latest.glob("state-*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")

    summary = run_training(disturbed)  # the same command again, from the checkpoint before
    assert standing(disturbed) == "done"
    assert weights(disturbed.folder) == weights(undisturbed.folder)
    rows = read_history(f"{disturbed.folder}/{HISTORY}")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    for name in ("loss", "validation_loss", "learning_rate", "gradient_norm"):
        assert [row[name] for row in rows] == [row[name] for row in reference]
    assert summary["steps"] == STEPS and len(checkpoints(disturbed.folder)) == 2  # keep_checkpoints
