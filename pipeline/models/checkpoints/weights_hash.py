"""The hashes that tell one model's weights from another's. They lie on users' disks, so each keeps its algorithm."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...storage.files import list_files, resolve
from .exports import is_export


def weights_hash(path: str) -> str:
    """Return BLAKE2b of an export's weights, of a weights file, or of all safetensors in a folder of diffusers."""
    folder = next((one for one in (path, f"{path}/transformer") if is_export(one)), None)
    return _digest(hashlib.blake2b(digest_size=8), list_files(folder, ".safetensors") if folder else [path])


def weights_sha256(files: Iterable[str | Path]) -> str:
    """Return SHA-256 of the bytes of all files, one after the other. Raises FileNotFoundError."""
    return _digest(hashlib.sha256(), files)


def folder_hash(folder: Path, files: Iterable[Path]) -> str:
    """Return BLAKE2b of the names and the contents of files in `folder`."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _digest(digest: Any, files: Iterable[str | Path]) -> str:
    for file in files:
        filesystem, inner = resolve(str(file))
        with filesystem.open_input_stream(inner) as stream:
            while chunk := stream.read(8 << 20):
                digest.update(chunk)
    return digest.hexdigest()
