"""Read and write whole files, local or on s3://, and list folders; s3.py makes the requests to S3."""

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from ..errors import UserError
from . import s3
from .s3 import Entry, StorageRefused, StorageUnavailable, download

__all__ = ["Entry", "StorageRefused", "StorageUnavailable", "download"]

READS = 16  # objects on S3 that are read at the same time


def is_remote(path: str) -> bool:
    """Whether `path` is an address, of S3 or of another kind."""
    return "://" in path


def is_s3(path: str) -> bool:
    """Whether `path` is on S3. Raises UserError for an address of another kind."""
    if is_remote(path) and not path.startswith("s3://"):
        raise UserError(f"{path}: only local paths and s3:// are supported")
    return path.startswith("s3://")


def local(path: str) -> Path:
    """The absolute path of a local `path`, with ~ expanded."""
    return Path(path).expanduser().absolute()


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """(filesystem, path within it) for libraries that want one, such as Ray Train. Raises UserError.

    Do not write to S3 with it otherwise: when an exception leaves pyarrow's stream, it completes a truncated object.
    """
    if not is_s3(path):
        return pafs.LocalFileSystem(), str(local(path))
    return pafs.S3FileSystem(
        endpoint_override=s3.endpoint() or "",
        region=s3.region(),
        connect_timeout=s3.CONNECT_TIMEOUT_S,
        request_timeout=s3.timeout_s(),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=s3.attempts_allowed()),
    ), path.removeprefix("s3://").rstrip("/")


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return s3.exists(path) if is_s3(path) else local(path).exists()


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises FileNotFoundError."""
    return s3.read(path) if is_s3(path) else local(path).read_bytes()


def read_all(paths: Sequence[str]) -> Iterator[bytes]:
    """The contents of many files, in order; from S3 several at a time. Raises FileNotFoundError."""
    if not paths or not is_s3(paths[0]):
        yield from map(read_bytes, paths)
        return
    with ThreadPoolExecutor(READS) as pool:
        for start in range(0, len(paths), 4 * READS):  # not all at once, since contents wait in memory
            yield from pool.map(s3.read, paths[start : start + 4 * READS])


def read_range(path: str, offset: int, length: int) -> bytes:
    """At most `length` bytes from `offset`; fewer where the file ends. Raises FileNotFoundError."""
    if is_s3(path):
        return s3.read_range(path, offset, length)
    with open(local(path), "rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises FileNotFoundError or ValueError."""
    return json.loads(read_bytes(path))


def write_bytes(path: str, content: bytes) -> None:
    """Write a file that appears whole or not at all: a local file is renamed into place, an S3 object is atomic."""
    if is_s3(path):
        s3.write(path, content)
        return
    target = local(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, indented by one space."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def remove(path: str) -> None:
    """Delete a file; one that is not there is no error."""
    if is_s3(path):
        s3.remove(path)
    else:
        local(path).unlink(missing_ok=True)


def entries(folder: str, recursive: bool = False, hidden: bool = False) -> Iterator[Entry]:
    """The files in `folder` (or below it), sorted by relative path; none if there is no such folder.

    `hidden`: include names that begin with a dot, which files have while they are written.
    """
    if is_s3(folder):
        found = s3.entries(folder, recursive)
    else:
        root = str(local(folder))
        selector = pafs.FileSelector(root, recursive=recursive, allow_not_found=True)
        listed = pafs.LocalFileSystem().get_file_info(selector)
        files = sorted((one for one in listed if one.type == pafs.FileType.File), key=lambda one: one.path)
        found = (Entry(one.path, one.path[len(root) :].lstrip("/"), one.size, one.mtime_ns / 1e9) for one in files)
    return (entry for entry in found if hidden or not entry.relative.rpartition("/")[2].startswith("."))


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Full addresses of the files in `folder` (not below it), sorted; [] if there is no such folder."""
    return [entry.address for entry in entries(folder) if entry.address.endswith(suffix)]


def walk(folder: str) -> Iterator[tuple[str, str, int]]:
    """(address, path relative to `folder`, bytes) of every file below `folder`, sorted by relative path."""
    return ((entry.address, entry.relative, entry.size) for entry in entries(folder, recursive=True, hidden=True))


def check_reachable(path: str) -> None:
    """Raise, within half a minute or so, if `path` is on S3 and cannot be listed."""
    if is_s3(path):
        s3.check(path)


def check_writable_place(storage: str) -> None:
    """Refuse a relative folder inside a Ray job: its working directory is a copy that is deleted afterwards."""
    relative = not is_remote(storage) and not Path(storage).expanduser().is_absolute()
    if relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise UserError(
            f"run.storage = {storage}: relative, but a submitted job runs in a temporary copy of this folder; "
            f"give an absolute path or s3:// address, for example --run.storage $PWD/{storage}"
        )
