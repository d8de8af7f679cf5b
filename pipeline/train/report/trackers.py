"""Weights & Biases and MLflow beside TensorBoard, where run.track asks for them. Rank 0 only.

Their own environment variables (WANDB_*, MLFLOW_*) say where they report to and with which key; no setting holds a key.
A run that goes on is the same run there. A tracker that fails later is left out with a line, and training goes on.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import yaml

from ...errors import UserError
from ...storage.files import read_bytes

PROJECT = "framebridge"
TRACKER_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Takes a run's figures."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures after `step` steps."""

    def close(self) -> None:
        """End the run."""


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, name: str, identity: str, config: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=PROJECT, name=name, id=identity, resume="allow", config=dict(config))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MlflowTracker:
    """A run of MLflow at MLFLOW_TRACKING_URI, found again by its tag."""

    def __init__(self, name: str, identity: str, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        runs = self.client.search_runs([experiment], f"tags.{PROJECT} = '{identity}'", max_results=1)
        if runs:
            self.id = runs[0].info.run_id
            return
        self.id = self.client.create_run(experiment, tags={PROJECT: identity}, run_name=name).info.run_id
        for key, value in config.items():
            self.client.log_param(self.id, key, value)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures."""
        for key, value in values.items():
            self.client.log_metric(self.id, key, value, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.client.set_terminated(self.id)


KINDS: dict[str, Callable[[str, str, Mapping[str, Any]], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def check_trackers(kinds: Iterable[str]) -> None:
    """Raise UserError for a tracker of run.track that is not installed here."""
    for kind in kinds:
        package = TRACKER_PACKAGES[kind]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"run.track = {kind}: not installed; pip install {TRACKER_PACKAGES[kind]} on every node, or set []"
            )


def open_trackers(kinds: Iterable[str], folder: str) -> list[Tracker]:
    """Open the trackers of run.track for the run in `folder`, whose settings.yaml they show."""
    if not (kinds := list(kinds)):
        return []
    identity = hashlib.blake2b(folder.encode(), digest_size=8).hexdigest()
    name = "/".join(folder.rsplit("/", 2)[-2:])
    config = flat(yaml.safe_load(read_bytes(f"{folder}/settings.yaml")))
    return [KINDS[kind](name, identity, config) for kind in kinds]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 5}} -> {"train.steps": 5}"""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def track(trackers: list[Tracker], step: int, values: Mapping[str, float]) -> list[Tracker]:
    """Hand the values on; return the trackers that took them."""
    good = []
    for tracker in trackers:
        try:
            tracker.add(step, values)
            good.append(tracker)
        except Exception as error:  # noqa: BLE001 (theirs are of many kinds, and none is a reason to end a training)
            print(f"{type(tracker).__name__}: left out from step {step} on ({type(error).__name__})", flush=True)
    return good
