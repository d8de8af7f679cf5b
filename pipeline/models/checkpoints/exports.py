"""Our exports: a folder with `model.safetensors` and `config.json`, which appears whole or not at all."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from ...storage.files import exists, is_remote, read_bytes, read_json, write_bytes
from .weights import State, WeightsError, load_safetensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"


def save_export(
    folder: str | Path, module_state: Mapping[str, Tensor], config: Mapping[str, Any], card: str | None = None
) -> Path:
    """Write an export, replace an earlier one, and return its path.

    `card` describes the weights to people, in Markdown. Raises WeightsError where `folder` holds something else.
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
        tensors = {name: _portable(value) for name, value in module_state.items()}
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


def _portable(value: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory, as safetensors requires."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def save_checkpoint(folder: str | Path) -> bytes:
    """Return an export as a torch file in the layout of the authors' code. Raises WeightsError.

    Parameters already have the authors' names; the layouts differ only in the name at the top of the file.
    """
    state, config = load_export(folder)
    unet = config["model"].get("backbone") == "unet3d"
    stream = io.BytesIO()
    torch.save({"state_dict": state} if unet else {"model": state, "ema": state}, stream)  # stored once, named twice
    return stream.getvalue()


def load_export(folder: str | Path) -> tuple[State, dict[str, Any]]:
    """Read the state and the config of an export. Raises WeightsError where a file is missing or damaged."""
    folder = Path(folder)
    state = load_safetensors(folder / WEIGHTS_FILE)
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is missing or not JSON ({error}): export again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds a {type(config).__name__}, expected an object: export again")
    return state, config


def is_export(path: str) -> bool:
    """Return whether the folder has a config.json, ours or diffusers'."""
    return exists(f"{path}/{CONFIG_FILE}")


def is_diffusers(path: str) -> bool:
    """Return whether the folder's config.json is diffusers', not ours."""
    try:
        return "_class_name" in read_json(f"{path}/{CONFIG_FILE}")
    except ValueError:
        return False


def read_config(path: str, key: str, remedy: str = "export again") -> dict[str, Any]:
    """Read config.json of one of our exports. Raises UserError, which names `remedy` and the setting `key`."""
    address = f"{path}/{CONFIG_FILE}"
    try:
        config = read_json(address)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no export there ({CONFIG_FILE} is missing); {remedy}, or set {key}") from error
    except ValueError as error:
        raise UserError(f"{address}: not valid JSON ({error}); export again, or set {key}") from error
    missing = {"kind", "model", "bridge", "latent_shape", "classes", "vae"} - set(config)
    if missing:
        raise UserError(f"{path}: no export of this project (without {', '.join(sorted(missing))}); set {key}")
    return config


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Yield a local path of an export folder or a weights file; copies from s3:// are removed afterwards."""
    if not is_remote(path):
        yield str(Path(path).expanduser())
        return
    with tempfile.TemporaryDirectory() as folder:
        if is_export(path):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                write_bytes(f"{folder}/{name}", read_bytes(f"{path}/{name}"))
            yield folder
        else:
            local = f"{folder}/{path.rsplit('/', 1)[1]}"
            write_bytes(local, read_bytes(path))
            yield local
