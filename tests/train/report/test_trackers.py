"""W&B and MLflow beside TensorBoard: where asked and installed, and never a reason for a run to end."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import UserError
from pipeline.settings import Settings
from pipeline.train.report.history import History
from pipeline.train.report.trackers import TRACKER_PACKAGES, check_trackers, open_trackers


def installed(name: str) -> bool:
    return importlib.util.find_spec(TRACKER_PACKAGES[name]) is not None


@pytest.mark.parametrize("name", TRACKER_PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    settings = tiny_settings(tmp_path, f"--run.track=[{name}]")
    if installed(name):
        check_trackers(settings.run.track)
    else:
        with pytest.raises(UserError, match=f"run.track = {name}: not installed; pip install {name}"):
            check_trackers(settings.run.track)


def folder_of(settings: Settings) -> str:
    """A run's folder with its settings.yaml, as the driver leaves it."""
    folder = Path(settings.run.folder, "finetune")
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(settings.to_yaml())
    return str(folder)


class Broken:
    """One that fails at its second figure, as a service that went away."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self.seen:
            raise ConnectionError("https://user:secret@example.org refused")
        self.seen.append((step, dict(values)))

    def close(self) -> None:
        raise AssertionError("was left out")


def test_a_tracker_that_fails_is_left_out_and_tensorboard_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken()
    history = History(str(tmp_path), 0, 3, [broken])
    for step in (1, 2, 3):
        history.add(step, loss=1.0 / step, tflops=2.0, validation_loss=None)
    history.close()
    assert broken.seen == [(1, {"loss": 1.0, "tflops": 2.0})]
    shown = capsys.readouterr().out
    assert shown.count("Broken: left out from step 2 on (ConnectionError)") == 1 and "secret" not in shown
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3]
    assert history.summary()["tflops"] == 2.0 and history.summary()["mfu"] is None


@pytest.mark.skipif(not installed("mlflow"), reason="mlflow is not installed (optional)")
def test_mlflow_keeps_one_run_over_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow.tracking import MlflowClient

    settings = tiny_settings(tmp_path, "--run.track=[mlflow]")
    folder = folder_of(settings)
    for start in (0, 2):
        history = History(folder, start, 4, open_trackers(settings.run.track, folder))
        for step in (start + 1, start + 2):
            history.add(step, loss=float(step))
        history.close()
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("framebridge").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
    assert run.data.params["train.steps"] == str(settings.train.steps)


@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed (optional)")
def test_wandb_offline_keeps_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    settings = tiny_settings(tmp_path, "--run.track=[wandb]")
    folder = folder_of(settings)
    history = History(folder, 0, 1, open_trackers(settings.run.track, folder))
    history.add(1, loss=0.5)
    history.close()
    (log,) = Path(tmp_path).rglob("run-*.wandb")
    content = log.read_bytes()
    assert b"loss" in content and b"0.5" in content and b"train.steps" in content
