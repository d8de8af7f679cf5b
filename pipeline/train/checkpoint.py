"""State that a run resumes from (all ranks, through Ray Train), and the export that it ends with."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from torch import Tensor

from pipeline.models.weights import CONFIG_FILE, WEIGHTS_FILE, save_export
from pipeline.storage import is_remote, resolve, write_bytes

TAG = "state"


def save(engine: Any, step: int, metrics: Mapping[str, float | None]) -> None:
    """Save model, optimizer and position after `step` steps. A barrier: every rank calls it, at the same steps.

    Ray Train counts a checkpoint only when every rank's files have arrived: a half-written one is never resumed from.
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        engine.save_checkpoint(folder, tag=TAG, client_state={"step": step})
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step, **metrics}, checkpoint=checkpoint)


def restore(engine: Any) -> int:
    """Load the latest checkpoint of this run, if there is one; the number of steps that it had made."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        _, position = engine.load_checkpoint(folder, tag=TAG)
    return int(position["step"])


def export(address: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an export folder, local or s3://; there config.json comes last, and without it there is no export."""
    if not is_remote(address):
        save_export(resolve(address)[1], state, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = save_export(Path(folder) / "export", state, config)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            write_bytes(f"{address}/{name}", (local / name).read_bytes())
