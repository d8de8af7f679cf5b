"""Find a model's files: shipped with the package, in a local folder, or on the Hugging Face hub. Imports no torch."""

import hashlib
import json
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...errors import UserError

CONFIG = "config.json"  # of a model of diffusers or transformers
SHIPPED = Path(__file__).resolve().parents[2] / "shipped" / "weights"
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")  # owner/name, optionally with a folder


def shipped_path(path: str) -> str:
    """Return the folder of "shipped:NAME", a model that comes with the package; return other paths unchanged."""
    if not path.startswith("shipped:"):
        return path
    folder = SHIPPED / path.removeprefix("shipped:")
    if not folder.is_dir():
        names = ", ".join(f"shipped:{child.name}" for child in sorted(SHIPPED.iterdir()))
        raise UserError(f"{path}: no such shipped model; there are {names}")
    return str(_unpacked(folder) if any(folder.glob("*.xz")) else folder)


def _unpacked(folder: Path) -> Path:
    """Return a copy of `folder` with unpacked .xz files, made at first use; submitted jobs carry the packed ones."""
    digest = hashlib.blake2b(digest_size=8)
    for packed in sorted(folder.iterdir()):
        digest.update(packed.name.encode() + packed.read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "framebridge"
    target = caches / f"{folder.name}-{digest.hexdigest()}"
    if target.is_dir():
        return target
    caches.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=caches))
    for packed in folder.iterdir():
        if packed.suffix == ".xz":
            (beside / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
        else:
            shutil.copyfile(packed, beside / packed.name)
    try:
        beside.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(beside)
        if not target.is_dir():
            raise
    return target


def local_path(path: str) -> Path | None:
    """Return `path` as an existing local file or folder, or None if it can only be a hub name."""
    local = Path(shipped_path(path)).expanduser()
    return local if local.exists() else None


def hub_folder(path: str, patterns: list[str]) -> Path | None:
    """Return the local folder of the hub name `path`, with the files that match `patterns`, downloaded if needed.

    A hub name is owner/name or owner/name/folder. Returns None for anything else, if there is no such repository, or if
    there is neither network nor copy.
    """
    match = HUB_NAME.fullmatch(path)
    if match is None:
        return None
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    inside = f"{match[2].strip('/')}/" if match[2] else ""
    wanted = [inside + pattern for pattern in patterns]
    try:
        return Path(huggingface_hub.snapshot_download(match[1], allow_patterns=wanted)) / inside
    except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError):
        return None


def model_config(file: Path, key: str, expected: Collection[str], default: str | None = None) -> dict[str, Any]:
    """Read the config.json of a model whose `key` names its class. Raises OSError, or ValueError for another class."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    kind = config.get(key, default) if isinstance(config, dict) else type(config).__name__
    if kind not in expected:
        raise ValueError(f"{file} has {key} {kind}, expected {' or '.join(expected)}")
    return config


@contextmanager
def naming(setting: str, path: str, what: str, remedy: str) -> Iterator[None]:
    """Turn errors of a model's files into a UserError of one line: the setting, the reason and the remedy."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        damaged = "not a whole safetensors file: " if isinstance(error, SafetensorError) else ""
        reason = damaged + str(error).strip().splitlines()[0]
        raise UserError(f"{setting} = {path}: no {what} could be loaded ({reason}); {remedy}") from error
