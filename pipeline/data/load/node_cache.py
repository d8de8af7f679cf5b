"""Clips of a cache on s3:// kept on the node's own disk, so that only the first epoch is read over the network.

    FOLDER/CACHE/HH/HASH    the bytes of one latent or text, CACHE and HASH being hashes of addresses

Every worker of a node finds what any of them has fetched. The room is bounded by cache.local_gb, and by half of what is
free on the disk: caches of other runs give way, the longest unused first. What is there of this one then stays: every
clip comes once an epoch in an order that is new each time, so that room for half of the clips saves half of the
reads, where making room for the latest (LRU) would save 15 %.
"""

import hashlib
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from ...settings import CacheSettings
from ...storage.files import is_remote, read_range
from ..cache.manifest import Cache
from .mix import paths_of

GB = 10**9


class Folder(NamedTuple):
    """What one cache keeps."""

    path: Path
    used: float  # when it was last taken into use, seconds since 1970
    size: int  # bytes


class NodeCache:
    """Byte ranges of remote files, read through a local folder. Safe for several threads, and for several processes
    that share `limit` in equal parts, `sharers` of them.
    """

    def __init__(self, folder: str | Path, cache: str, limit: int, needed: int, sharers: int = 1) -> None:
        """`cache`: its address; `needed`: bytes that all of its ranges take together."""
        self.folder = Path(folder).expanduser() / _hash(cache)
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        room = make_room(self.folder, limit, needed)
        self.left = room // sharers
        self._lock = threading.Lock()

    def read_range(self, address: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`, as storage.read_range. Raises FileNotFoundError."""
        name = _hash(f"{address}@{offset}+{length}")
        path = self.folder / name[:2] / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        content = read_range(address, offset, length)
        if len(content) == length and self._reserve(length):
            self._write(path, content)
        return content

    def _reserve(self, length: int) -> bool:
        with self._lock:
            if self.left < length:
                return False
            self.left -= length
            return True

    def _write(self, path: Path, content: bytes) -> None:
        beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            beside.write_bytes(content)
            os.replace(beside, path)
        except OSError:  # the disk is full, or another run took the folder away: the clip is read from afar again
            self.left = 0
            beside.unlink(missing_ok=True)


def keep_locally(cache: Cache, settings: CacheSettings, sharers: int) -> NodeCache | None:
    """What keeps the clips of a cache on s3:// on this node, for `sharers` workers; None where there is no need."""
    paths = paths_of(cache)
    if settings.local_path is None or not any(map(is_remote, paths)):
        return None
    needed = sum(pc.sum(cache.table[name]).as_py() or 0 for name in ("length", "text_length"))
    return NodeCache(settings.local_path, "+".join(paths), int(settings.local_gb * GB), needed, sharers)


def make_room(folder: Path, limit: int, needed: int) -> int:
    """Bytes that may be added to `folder`, after folders beside it gave way as far as that helps."""
    own = _size(folder)
    limit = min(limit, own + shutil.disk_usage(folder).free // 2)
    if own > limit:  # the limit was lowered
        shutil.rmtree(folder)
        folder.mkdir()
        own = 0
    others = sorted(
        (
            Folder(one, one.stat().st_mtime, _size(one))
            for one in folder.parent.iterdir()
            if one != folder and one.is_dir()
        ),
        key=lambda other: other.used,
    )
    taken = sum(other.size for other in others)
    wanted = min(max(needed, own), limit)
    for other in others:
        if taken + wanted <= limit:
            break
        shutil.rmtree(other.path, ignore_errors=True)
        taken -= other.size
    return max(0, limit - own - taken)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another run is making room
            continue
    return total


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
