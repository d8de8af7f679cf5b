"""Checkpoints that a run goes on from, at any number of workers, and the export that it ends with.

    CHECKPOINT/state-00000-of-00002.safetensors   a rank's share of weights and optimizer state (state.py)
    CHECKPOINT/state-00000-of-00002.json          its checksum, and the number of steps made

Ray Train counts a checkpoint when the files of all ranks have arrived, so none is half-written. One that was damaged
since is told from its checksums, and the one before is taken.
"""

import json
import logging
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.models.weights import CONFIG_FILE, WEIGHTS_FILE, save_export
from pipeline.storage import is_remote, resolve, write_bytes
from pipeline.train.state import Ema, count_updates, gather, optimizer_keys

log = logging.getLogger("checkpoint")


class Saved(NamedTuple):
    """A checkpoint, read."""

    step: int  # steps of training made
    updates: int  # by the optimizer's own count
    tensors: dict[str, Tensor]  # "PARAMETER/weight", "PARAMETER/exp_avg", ...: of all ranks


class CheckpointDamaged(ValueError):
    """A checkpoint whose files are not those that were written."""


def save(
    engine: Any,
    ema: Ema | None,
    optimizer: str,
    rank: int,
    workers: int,
    step: int,
    metrics: Mapping[str, float | None],
) -> None:
    """Save weights, optimizer state and position after `step` steps. Every rank calls it, at the same steps."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        share = gather(engine, optimizer_keys(optimizer), rank, workers)
        if ema:
            share |= ema.gather(engine, rank, workers)
        write_share(Path(folder), share, rank, workers, step, count_updates(engine))
        ray.train.report({"step": step, **metrics}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def restore(device: torch.device) -> Saved | None:
    """The latest checkpoint of this run that is whole on every rank; None if there is none. Every rank calls it.

    Raises CheckpointDamaged if there are checkpoints and none is whole.
    """
    if ray.train.get_checkpoint() is None:
        return None
    reported = ray.train.get_all_reported_checkpoints()
    for number, one in enumerate(reversed(reported)):
        saved, problem = None, ""
        try:
            with one.checkpoint.as_directory() as folder:
                saved = read_shares(Path(folder))
        except (CheckpointDamaged, OSError) as error:
            problem = str(error)
        if all_agree(saved is not None, device):
            return saved
        print(f"checkpoint {one.checkpoint.path} cannot be used ({problem or 'another worker says so'})", flush=True)
        if number + 1 == len(reported):
            raise CheckpointDamaged(
                f"none of the {len(reported)} checkpoints kept can be read; delete the run's folder, or choose another "
                "--run.name, to start anew"
            )
    return None


def all_agree(fine: bool, device: torch.device) -> bool:
    """Whether `fine` on every rank."""
    votes = torch.tensor(int(fine), device=device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes)


def write_share(folder: Path, tensors: dict[str, Tensor], rank: int, workers: int, step: int, updates: int) -> None:
    """One rank's files."""
    path = folder / f"state-{rank:05d}-of-{workers:05d}.safetensors"
    save_file(tensors, path)
    mark = {"step": step, "updates": updates, "crc32": f"{checksum(path):08x}", "bytes": path.stat().st_size}
    path.with_suffix(".json").write_text(json.dumps(mark))


def read_shares(folder: Path) -> Saved:
    """All ranks' files. Raises CheckpointDamaged."""
    marks = sorted(folder.glob("state-*-of-*.json"))
    workers = int(marks[0].stem.rsplit("-", 1)[1]) if marks else 0
    if not marks or len(marks) != workers:
        raise CheckpointDamaged(f"holds the state of {len(marks)} ranks, {workers or 'some'} wrote it")
    tensors: dict[str, Tensor] = {}
    steps = set()
    for path in marks:
        try:
            mark = json.loads(path.read_text())
            steps.add((int(mark["step"]), int(mark["updates"])))
            whole = checksum(path.with_suffix(".safetensors")) == int(mark["crc32"], 16)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{path.stem}: {type(error).__name__}") from error
        if not whole:
            raise CheckpointDamaged(f"{path.stem}: checksum differs")
        tensors |= load_file(path.with_suffix(".safetensors"))
    if len(steps) != 1:
        raise CheckpointDamaged(f"its ranks stand at steps {sorted(steps)}")
    return Saved(*steps.pop(), tensors)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(8 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def export(address: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write an export folder, local or s3://; there config.json comes last, and without it there is no export."""
    if not is_remote(address):
        save_export(resolve(address)[1], state, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = save_export(Path(folder) / "export", state, config)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            write_bytes(f"{address}/{name}", (local / name).read_bytes())
