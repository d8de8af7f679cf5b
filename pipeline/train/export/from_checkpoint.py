"""CHECKPOINT -> EXPORT, for any number of ranks and ZeRO stage; needs neither a cluster nor DeepSpeed."""

import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import UserError
from ...storage.files import entries, read_bytes, read_json
from ..adapters import merged
from ..checkpoint import CheckpointDamaged, Saved, read_shares
from ..deepspeed.state import EMA, WEIGHT
from ..initial import initial_model
from ..plan import CHECKPOINTS
from ..spec import TrainSpec
from .write import export, export_config


class Found(NamedTuple):
    """A checkpoint in a run's folder."""

    step: int
    address: str
    files: list[str]


def find_checkpoints(folder: str) -> list[Found]:
    """The checkpoints in a run's folder, by step; only those with the files of all ranks."""
    files: dict[str, list[str]] = {}
    for entry in entries(f"{folder}/{CHECKPOINTS}", recursive=True):
        place, _, name = entry.address.rpartition("/")
        if name.startswith("state-"):
            files.setdefault(place, []).append(entry.address)
    found = []
    for place, addresses in files.items():
        mark = next((one for one in addresses if one.endswith(".json")), None)
        ranks = int(addresses[0].rpartition("-of-")[2].split(".")[0])
        if mark is not None and len(addresses) == 2 * ranks:
            with contextlib.suppress(OSError, ValueError, KeyError):  # pruned, or half-written
                found.append(Found(int(read_json(mark)["step"]), place, addresses))
    return sorted(found)


def export_checkpoint(spec: TrainSpec, found: Found, folder: str) -> None:
    """Write the fine-tuned model of a checkpoint as an export folder, as training does at its end.

    Raises CheckpointDamaged where its files are not whole (yet).
    """
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as local:
        for address in found.files:
            with contextlib.suppress(FileNotFoundError):  # pruned: read_shares says so
                (Path(local) / address.rpartition("/")[2]).write_bytes(read_bytes(address))
        state = state_of(spec, read_shares(Path(local)))
    export(folder, state, export_config(spec) | {"steps": found.step})


def state_of(spec: TrainSpec, saved: Saved) -> dict[str, torch.Tensor]:
    """The backbone's state in a checkpoint: the averaged weights where train.ema_decay keeps some."""
    kind = EMA if spec.train.ema_decay else WEIGHT
    state = initial_model(spec)[0].state_dict()
    for name in state:
        if (learned := saved.tensors.get(f"{name}/{kind}")) is not None:
            state[name] = learned.view_as(state[name])
    return merged({name.removeprefix("backbone."): value for name, value in state.items()}, spec.train.lora)


def choose_checkpoint(folder: str, step: int | None) -> Found:
    """The checkpoint of `step` in a run's folder, or the latest. Raises UserError if it is not there."""
    found = find_checkpoints(folder)
    if not found:
        raise UserError(f"{folder}/{CHECKPOINTS}: no checkpoint there; jobs/finetune.py writes them")
    chosen = [one for one in found if one.step == (step or found[-1].step)]
    if not chosen:
        there = ", ".join(str(one.step) for one in found)
        raise UserError(f"sample.checkpoint = {step}: {folder} holds those of steps {there}; choose one of them")
    return chosen[-1]


def export_of_checkpoint(spec: TrainSpec, found: Found) -> str:
    """Write STORAGE/NAME/finetune/export-step-N and return it. Raises UserError."""
    target = f"{spec.folder}/export-step-{found.step:07d}"
    try:
        export_checkpoint(spec, found, target)
    except CheckpointDamaged as error:
        raise UserError(f"{found.address}: {error}; set sample.checkpoint to the step of another one") from error
    return target
