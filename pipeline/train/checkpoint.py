"""Checkpoints that a run goes on from, at any number of workers, and the export that it ends with.

    CHECKPOINT/state-00000-of-00002.safetensors   a rank's share of weights and optimizer state (deepspeed/state.py)
    CHECKPOINT/state-00000-of-00002.json          its checksum, and the number of steps made

A rank's share is copied to memory while training waits, and written while training goes on. Ray Train counts a
checkpoint when the files of all ranks have arrived, so none is half-written. Checksums reveal a checkpoint that was
damaged later, and the run goes on from the one before.
"""

import contextlib
import errno
import functools
import json
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs
import ray.train
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import JobFailed
from ..runtime.ray_internals import run_storage
from ..storage.files import is_remote, write_bytes
from .deepspeed.state import optimizer_keys
from .ranks import RankInfo

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SPARE = 16 << 20  # bytes that stay free beside a checkpoint: Ray Train's list of them is not written atomically

log = logging.getLogger("checkpoint")


class Saved(NamedTuple):
    """A checkpoint, or one rank's share of it."""

    step: int  # steps of training made
    updates: int  # by the optimizer's own count
    tensors: dict[str, Tensor]  # "PARAMETER/weight", "PARAMETER/exp_avg", ...

    def made_by(self, optimizer: str) -> bool:
        """Whether the state is of this train.optimizer: a run that is still ending may save after the next began."""
        kept = {name.rpartition("/")[2] for name in self.tensors}
        return not self.updates or not kept.isdisjoint(optimizer_keys(optimizer))


class CheckpointDamaged(ValueError):
    """The files of a checkpoint are not those that were written."""


class NoRoom(JobFailed):
    """The storage is full, so that another start would fail the same way. The message says what to do."""


def no_room(folder: str, error: BaseException) -> NoRoom | None:
    """Return the error to raise if `error` says that a disk is full; otherwise None."""
    number = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
    if (int(number[1]) if number else getattr(error, "errno", None)) not in NO_ROOM:
        return None
    return NoRoom(
        f"{folder}: no room left to write ({error}); make room, and the same command goes on from the last checkpoint"
    )


@contextlib.contextmanager
def room_needed(folder: str) -> Iterator[None]:
    """Raise NoRoom where a write within it finds the disk full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = no_room(folder, error)
        if full is None:
            raise
        raise full from error


def save(share: Saved, rank: RankInfo, metrics: Mapping[str, float | None], written: Callable[[], None]) -> None:
    """Report a checkpoint to Ray Train. Every rank calls it with its share, at the same steps.

    Ray Train has the share written in the background, then `written` called; it fails the worker if writing fails.
    """
    storage = run_storage()

    def write(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        path, filesystem = storage.path_of(name), storage.filesystem
        address = path if isinstance(filesystem, pafs.LocalFileSystem) else f"s3://{path}"
        try:
            with room_needed(address):
                put_share(address, share, rank.rank, rank.workers)
        finally:
            written()
        return ray.train.Checkpoint(path, filesystem)

    known = {name: value for name, value in metrics.items() if value is not None}
    ray.train.report(
        # the score of train.keep_by; the worst one where nothing was validated
        {"step": share.step, "validation_loss": float("inf"), **known},
        checkpoint=ray.train.Checkpoint(storage.folder, storage.filesystem),  # not used by `write`
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=write,
        delete_local_checkpoint_after_upload=False,  # there is none
    )


def restore(rank: RankInfo) -> Saved | None:
    """Read the latest checkpoint of this run that is whole on every rank; None if there is none. Every rank calls it.

    Raises CheckpointDamaged if there are checkpoints and none is whole.
    """
    if ray.train.get_checkpoint() is None:
        return None
    reported = sorted(ray.train.get_all_reported_checkpoints(), key=lambda one: one.metrics["step"], reverse=True)
    if rank.rank == 0:
        sweep({one.checkpoint.path for one in reported})
    for one in reported:
        saved, problem = None, ""
        try:
            with one.checkpoint.as_directory() as folder:
                saved = read_shares(Path(folder))
        except (CheckpointDamaged, OSError) as error:
            problem = str(error)
        if all_agree(saved is not None, rank.device):
            return saved
        print(f"checkpoint {one.checkpoint.path} cannot be used ({problem or 'another worker says so'})", flush=True)
    raise CheckpointDamaged(
        f"none of the {len(reported)} checkpoints kept can be read; delete the run's folder, or change --run.name"
    )


def sweep(counted: set[str]) -> None:
    """Remove the folders of checkpoints that were being written when their workers ended."""
    storage = run_storage()
    filesystem = storage.filesystem
    for one in filesystem.get_file_info(pafs.FileSelector(storage.folder)):
        if one.type == pafs.FileType.Directory and one.base_name.startswith("checkpoint_") and one.path not in counted:
            filesystem.delete_dir(one.path)


def all_agree(fine: bool, device: torch.device) -> bool:
    """Return whether `fine` holds on every rank."""
    votes = torch.tensor(int(fine), device=device)
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN)
    return bool(votes)


def put_share(address: str, share: Saved, rank: int, workers: int) -> None:
    """Write one rank's files to a folder, local or s3://. Raises OSError, or SafetensorError if the disk is full."""
    if is_remote(address):
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            write_share(Path(folder), share, rank, workers)
            for file in sorted(Path(folder).iterdir()):
                write_bytes(f"{address}/{file.name}", file.read_bytes())
        return
    target = Path(address)
    target.mkdir(parents=True, exist_ok=True)
    write_share(target, share, rank, workers)
    if shutil.disk_usage(target).free < SPARE:
        raise OSError(errno.ENOSPC, f"less than {SPARE >> 20} MiB free")


def write_share(folder: Path, share: Saved, rank: int, workers: int) -> None:
    """Write one rank's files to a local folder."""
    path = folder / f"state-{rank:05d}-of-{workers:05d}.safetensors"
    save_file(share.tensors, path)
    mark: dict[str, Any] = {"step": share.step, "updates": share.updates}
    mark |= {"crc32": f"{file_crc32(path):08x}", "bytes": path.stat().st_size}
    path.with_suffix(".json").write_text(json.dumps(mark))


def read_shares(folder: Path) -> Saved:
    """Read the files of all ranks. Raises CheckpointDamaged."""
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
            whole = file_crc32(path.with_suffix(".safetensors")) == int(mark["crc32"], 16)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{path.stem}: {type(error).__name__}") from error
        if not whole:
            raise CheckpointDamaged(f"{path.stem}: checksum differs")
        tensors |= load_file(path.with_suffix(".safetensors"))
    if len(steps) != 1:
        raise CheckpointDamaged(f"its ranks stand at steps {sorted(steps)}")
    return Saved(*steps.pop(), tensors)


def file_crc32(path: Path) -> int:
    """CRC-32 of a file."""
    with open(path, "rb") as stream:  # not mapped into memory: there a disk's error would end the process
        return functools.reduce(lambda crc, chunk: zlib.crc32(chunk, crc), iter(lambda: stream.read(8 << 20), b""), 0)
