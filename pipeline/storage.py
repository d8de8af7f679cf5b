"""Folders and files, local or s3://: the one place that decides credentials, endpoint, retries and atomic writes."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipeline.settings import UserError


def is_remote(path: str) -> bool:
    return "://" in path


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """(filesystem, path within it) of a local path or s3:// address.

    S3 credentials and region come from the usual AWS environment, the endpoint from AWS_ENDPOINT_URL. Raises UserError.
    """
    if path.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        return pafs.S3FileSystem(
            endpoint_override=endpoint or "",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=8),
        ), path.removeprefix("s3://").rstrip("/")
    if is_remote(path):
        raise UserError(f"{path}: only local paths and s3:// are supported")
    return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())


def exists(path: str) -> bool:
    filesystem, inner = resolve(path)
    return filesystem.get_file_info(inner).type != pafs.FileType.NotFound


def read_bytes(path: str) -> bytes:
    """Raises FileNotFoundError."""
    filesystem, inner = resolve(path)
    with filesystem.open_input_stream(inner) as stream:
        return stream.read()


def read_json(path: str) -> Any:
    return json.loads(read_bytes(path))


def write_bytes(path: str, content: bytes) -> None:
    """The file appears whole or not at all: local files are renamed into place, an S3 object is atomic by itself."""
    filesystem, inner = resolve(path)
    if is_remote(path):
        with filesystem.open_output_stream(inner) as stream:
            stream.write(content)
        return
    target = Path(inner)
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
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def remove(path: str) -> None:
    """Delete a file; one that is not there is no error."""
    filesystem, inner = resolve(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inner)


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Full addresses of the files in `folder` (not below it), sorted; [] if there is no such folder."""
    filesystem, inner = resolve(folder)
    entries = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    prefix = "s3://" if folder.startswith("s3://") else ""
    return sorted(
        prefix + entry.path
        for entry in entries
        if entry.type == pafs.FileType.File and entry.path.endswith(suffix) and not entry.base_name.startswith(".")
    )


def walk(folder: str) -> Iterator[tuple[str, str, int]]:
    """(address, path relative to `folder`, bytes) of every file below `folder`, sorted by relative path."""
    filesystem, inner = resolve(folder)
    prefix = "s3://" if folder.startswith("s3://") else ""
    found = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
    for entry in sorted((e for e in found if e.type == pafs.FileType.File), key=lambda e: e.path):
        yield prefix + entry.path, entry.path[len(inner) :].lstrip("/"), entry.size


def check_writable_place(storage: str) -> None:
    """Refuse a relative folder inside a Ray job: its working directory is a copy that is deleted afterwards."""
    if (
        not is_remote(storage)
        and not Path(storage).expanduser().is_absolute()
        and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    ):
        raise UserError(
            f"run.storage = {storage}: relative, but a submitted job runs in a temporary copy of this folder; "
            f"give an absolute path or s3:// address, for example --run.storage $PWD/{storage}"
        )
