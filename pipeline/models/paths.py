"""Where a model's files are: shipped with the package, in a local folder, or on the Hugging Face hub. Imports no torch."""

import re
from pathlib import Path

from pipeline.settings import UserError

SHIPPED = Path(__file__).resolve().parent.parent / "shipped"
HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+))?")  # owner/name, and perhaps a folder in it


def shipped_path(path: str) -> str:
    """The folder behind "shipped:NAME", a model that comes with the package; other paths are returned as they are."""
    if not path.startswith("shipped:"):
        return path
    folder = SHIPPED / path.removeprefix("shipped:")
    if not folder.is_dir():
        names = ", ".join(f"shipped:{child.name}" for child in sorted(SHIPPED.iterdir()))
        raise UserError(f"{path}: no such shipped model; there are {names}")
    return str(folder)


def local_path(path: str) -> Path | None:
    """`path` as an existing local file or folder, or None where it can only be a hub name."""
    local = Path(shipped_path(path)).expanduser()
    return local if local.exists() else None


def hub_file(path: str, name: str) -> Path | None:
    """The local copy of file `name` of the hub name `path` (owner/name or owner/name/folder), downloaded where needed.

    None where `path` is no hub name, or its repository has no such file, or there is neither network nor a copy.
    """
    match = HUB_NAME.fullmatch(path)
    if match is None:
        return None
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.hf_hub_download(match[1], name, subfolder=match[2]))
    except (EntryNotFoundError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError):
        return None


def hub_folder(path: str, patterns: list[str]) -> Path | None:
    """As hub_file, for the files of a repository that match `patterns`."""
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
