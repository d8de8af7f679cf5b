"""NodeCache: clips of a cache on s3:// on the node's own disk, so that only the first epoch crosses the network.

    FOLDER/CACHE/HH/HASH    the bytes of one latent or text; CACHE and HASH are hashes of addresses

All workers of a node share what any of them has fetched. cache.local_gb bounds the room, and so does half of the free
disk. Folders of other runs are evicted, the longest unused first. Bytes of this run's cache then stay: every clip comes
once an epoch in an order that is new each time, so room for half of the clips saves half of the reads, while keeping
the latest (LRU) would save 15 %.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import uuid
from pathlib import Path

import pyarrow.compute as pc

from ...settings import CacheSettings
from ...storage.files import is_remote, read_range
from ..cache.manifest import Cache
from .mix import paths_of

GB = 10**9


class NodeCache:
    """Byte ranges of remote files, read through a local folder. Safe for several threads and processes."""

    def __init__(self, folder: str | Path, cache: str, limit: int, needed: int, sharers: int = 1) -> None:
        """Keep at most `limit` bytes in `folder`, of which each of `sharers` processes may add an equal part.

        `cache`: the cache's address; `needed`: bytes that all of its ranges take together.
        """
        self.folder = Path(folder).expanduser() / _short_hash(cache)
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        self.left = make_room(self.folder, limit, needed) // sharers
        self._lock = threading.Lock()

    def read_range(self, address: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`, as storage.files.read_range. Raises FileNotFoundError."""
        name = _short_hash(f"{address}@{offset}+{length}")
        path = self.folder / name[:2] / name
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
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
        except OSError:  # the disk is full, or another run evicted the folder: the next epoch reads the clip remotely
            self.left = 0
            beside.unlink(missing_ok=True)


def keep_locally(cache: Cache, settings: CacheSettings, sharers: int) -> NodeCache | None:
    """The NodeCache of a cache on s3:// for `sharers` workers of this node; None for a local cache or if not wanted."""
    paths = paths_of(cache)
    if settings.local_path is None or not any(map(is_remote, paths)):
        return None
    needed = sum(pc.sum(cache.table[name]).as_py() or 0 for name in ("length", "text_length"))
    return NodeCache(settings.local_path, "+".join(paths), int(settings.local_gb * GB), needed, sharers)


def make_room(folder: Path, limit: int, needed: int) -> int:
    """Evict other runs' folders if needed; return the bytes left for `folder`."""
    own = _size(folder)
    limit = min(limit, own + shutil.disk_usage(folder).free // 2)
    if own > limit:  # the limit was lowered
        shutil.rmtree(folder)
        folder.mkdir()
        own = 0
    others = {other: _size(other) for other in folder.parent.iterdir() if other != folder and other.is_dir()}
    wanted = min(max(needed, own), limit)
    for other in sorted(others, key=lambda path: path.stat().st_mtime):  # NodeCache touches its folder
        if sum(others.values()) + wanted <= limit:
            break
        shutil.rmtree(other, ignore_errors=True)
        del others[other]
    return max(0, limit - own - sum(others.values()))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another run evicts it
            continue
    return total


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
