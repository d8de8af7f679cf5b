"""Weights on disk, without Ray, DeepSpeed or pickles: our exports, published checkpoints, the way between.

An export is a folder with `model.safetensors` and `config.json`; it appears whole or not at all.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.models.latte import Latte
from pipeline.settings import UserError

State = dict[str, Tensor]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# in order of preference: averaged weights are what a published model is sampled with
WRAPPERS = ("ema", "model", "state_dict", "module")
# of distributed training, and of the neural prior in the authors' checkpoints
PREFIXES = ("module.", "nwarp_model.")
CLASS_TABLE = "y_embedder.embedding_table.weight"


class WeightsError(UserError):
    """Weights that cannot be read; the message names the path and the remedy."""


class WeightsMismatch(WeightsError):
    """Weights that were read and belong to another model."""


def save_export(
    folder: str | Path,
    module_state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    card: str | None = None,
) -> Path:
    """Writes an export, replacing an earlier one; gives its path.

    `card` is for people: what the weights are, in Markdown. dtype converts the floating-point tensors. Raises WeightsError where `folder` already holds something
    else.
    """
    folder = Path(folder)
    replaceable = (folder / CONFIG_FILE).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not replaceable:
        raise WeightsError(f"{folder} exists and is not an export (no {CONFIG_FILE}): choose another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new, old = beside / "new", beside / "old"
        new.mkdir()
        tensors = {name: _portable(value, dtype) for name, value in module_state.items()}
        save_file(tensors, new / WEIGHTS_FILE, metadata={"format": "pt"})
        (new / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (new / CARD_FILE).write_text(card, encoding="utf-8")
        shutil.copymode(new / CONFIG_FILE, new / WEIGHTS_FILE)  # safetensors makes files that only their owner can read
        for file in new.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _portable(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors requires."""
    converted = value.detach().to("cpu", dtype if value.is_floating_point() else None)
    return converted.clone(memory_format=torch.contiguous_format)


def save_checkpoint(folder: str | Path) -> bytes:
    """An export as a torch file in the layout of the authors' code. Raises WeightsError.

    Its names are the authors' already; what differs is under which name at the top a file's weights are looked for.
    """
    state, config = load_export(folder)
    unet = config["model"].get("backbone") == "unet3d"
    stream = io.BytesIO()
    torch.save({"state_dict": state} if unet else {"model": state, "ema": state}, stream)  # once, with two references
    return stream.getvalue()


def load_export(folder: str | Path) -> tuple[State, dict[str, Any]]:
    """State and config of an export. Raises WeightsError where a file is missing or damaged."""
    folder = Path(folder)
    state = _load_safetensors(folder / WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsError(f"{path} is missing: an export has {WEIGHTS_FILE} and {CONFIG_FILE}; export again")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON ({error}): export again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}, expected an object: export again")
    return state, config


def load_published(path: str | Path) -> State:
    """State of a published checkpoint: safetensors, or a torch file read with weights_only=True.

    Takes the averaged weights where the file has several ('ema' before 'model', 'state_dict' and DeepSpeed's
    'module'), and strips the prefix that all names share because of a wrapper (PREFIXES). Raises
    WeightsError on anything else; never unpickles code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _without_prefix(_load_safetensors(path))
    if not path.is_file():
        raise WeightsError(f"{path} is missing: give the path of a downloaded checkpoint or of an export")
    try:
        # trainers of the DiT family keep their argparse.Namespace beside the weights; it is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped, not read: of a whole text-to-video model only the VAE may be wanted
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path} cannot be read as plain weights ({reason}): convert it to safetensors where you trust it"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    items = loaded.items() if isinstance(loaded, Mapping) else ()
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors by name, neither at its top nor under {', '.join(WRAPPERS)}: "
            "give a checkpoint with a state dict"
        )
    return _without_prefix(tensors)


def _load_safetensors(path: Path) -> State:
    if not path.is_file():
        raise WeightsError(f"{path} is missing: give the path of a downloaded checkpoint or of an export")
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}): get or export it again") from error
    return state


def _without_prefix(state: State) -> State:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_strict(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads `state`, called `name` in messages, where it fits the module exactly; else WeightsMismatch."""
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    report = "; ".join(
        f"{len(found)} {what} ({_first(found)})"
        for found, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "mis-shaped"))
        if found
    )
    if report:
        raise WeightsMismatch(
            f"{name} does not fit the model of {len(own)} tensors: {report}. "
            "Build the model with the settings that these weights were made with, or give other weights"
        )
    module.load_state_dict(dict(state))


def _first(found: list[str], limit: int = 3) -> str:
    return ", ".join(found[:limit]) + (", ..." if len(found) > limit else "")


def bridge_state_from_diffusion(state: Mapping[str, Tensor], target: Latte) -> State:
    """The authors' way from a pre-trained diffusion Latte to the weights that a bridge `target` starts from.

    Drops the learned-sigma half of final_layer.linear, repeats the first entry of temp_embed for the image's
    extra frame, widens x_embedder with zeros for new channels (so that at first they change nothing), and
    takes the rest by name. Raises WeightsMismatch where the frames or channels do not lend themselves to
    that.
    """
    own = target.state_dict()
    bridge = dict(state)
    output = ("final_layer.linear.weight", "final_layer.linear.bias")
    for name in ("temp_embed", "x_embedder.proj.weight", *output):
        if name not in state:
            raise WeightsMismatch(f"{name} is missing: not the weights of a Latte (it has {_first(list(state))})")
    for name in output:
        if len(state[name]) == 2 * len(own[name]):
            # rows are (patch position, channel), and the second half of the channels is sigma
            rows = state[name].unflatten(0, (target.patch_size**2, 2, target.out_channels))
            bridge[name] = rows[:, 0].flatten(0, 1)
    frames = state["temp_embed"].shape[1]
    if frames == target.num_frames - 1:
        bridge["temp_embed"] = torch.cat([state["temp_embed"][:, :1], state["temp_embed"]], dim=1)
    elif frames != target.num_frames:
        raise WeightsMismatch(
            f"a diffusion model of {frames} frames cannot start a bridge of {target.num_frames} frames: "
            f"that needs {target.num_frames - 1}, the image being one, or {target.num_frames}"
        )
    patches = state["x_embedder.proj.weight"]
    extra = target.in_channels - patches.shape[1]
    if extra < 0:
        raise WeightsMismatch(
            f"a model of {patches.shape[1]} input channels cannot start a bridge of {target.in_channels}: "
            "give one with as many channels or fewer"
        )
    if extra:
        zeros = patches.new_zeros(patches.shape[0], extra, *patches.shape[2:])
        bridge["x_embedder.proj.weight"] = torch.cat([patches, zeros], dim=1)
    return bridge


def remap_classes(
    state: Mapping[str, Tensor], old_classes: Iterable[str], new_classes: Iterable[str]
) -> tuple[State, int]:
    """Class embeddings in a new order, matched by name: the state, and how many classes were kept.

    A class that the pre-trained model did not know starts as its null class, the table's last row.
    Raises WeightsMismatch where the table does not have one row a class and the null row, WeightsError
    where a name comes twice.
    """
    old, new = list(old_classes), list(new_classes)
    for names in (old, new):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WeightsError(f"class names must differ, but these come twice: {_first(twice)}")
    if CLASS_TABLE not in state:
        raise WeightsMismatch(f"{CLASS_TABLE} is missing: this model knows no classes")
    table = state[CLASS_TABLE]
    if len(table) != len(old) + 1:
        raise WeightsMismatch(
            f"{CLASS_TABLE} has {len(table)} rows, not one for each of {len(old)} classes and one for none: "
            "give the class names that these weights were trained with"
        )
    row = {name: i for i, name in enumerate(old)}
    rows = torch.tensor([row.get(name, len(old)) for name in new] + [len(old)])
    return {**state, CLASS_TABLE: table[rows]}, sum(name in row for name in new)
