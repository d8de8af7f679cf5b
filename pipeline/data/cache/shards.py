"""LATENTS -> SHARD: WebDataset tars that are the same bytes whenever they hold the same clips, and reading
from them.

A shard is invisible until its manifest part is written, which happens last (manifest.py). Any tar reader can
read one; this project reads a latent by its byte offset in the manifest.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from ...schema import LATENT_MEMBER, META_MEMBER, TEXT_MEMBER, ManifestRow
from ...storage.files import read_range

ReadRange = Callable[[str, int, int], bytes]  # address, offset, length -> at most so many bytes

SHARDS = "shards"
# what a sample's .json holds: what is true of the clip wherever the video and the shard lie
_NOT_IN_META = {"uri", "shard"} | {f"{of}{what}" for of in ("", "text_") for what in ("offset", "length", "checksum")}


class CorruptShard(ValueError):
    """A latent whose bytes are not those that were written. The message names the key and the shard."""


class Placed(TypedDict):
    """Where a latent lies in a tar, and the caption's embedding where there is one."""

    offset: int
    length: int
    checksum: str
    text_offset: NotRequired[int]
    text_length: NotRequired[int]
    text_checksum: NotRequired[str]


def set_name(keys: Iterable[str]) -> str:
    """Name of a set of clips, in whatever order they come."""
    return hashlib.blake2b("\n".join(sorted(keys)).encode(), digest_size=12).hexdigest()


def shard_name(keys: Iterable[str], tar: bytes) -> str:
    """File name of the shard `tar` that holds the clips `keys`: other bytes have another name."""
    return f"{set_name(keys)}-{hashlib.blake2b(tar, digest_size=6).hexdigest()}.tar"


def build_shard(
    samples: list[tuple[dict[str, Any], bytes]], texts: Sequence[bytes | None] | None = None
) -> tuple[bytes, list[Placed]]:
    """A tar of (row, latent .npy) samples in the given order, and where each latent lies in it.

    texts: for each sample the .npy of its caption's embedding, or None.
    """
    stream = io.BytesIO()
    placed: list[Placed] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for (row, latent), text in zip(samples, texts or [None] * len(samples), strict=True):
            offset = _add(tar, f"{row['key']}.{LATENT_MEMBER}", latent)
            place: Placed = {"offset": offset, "length": len(latent), "checksum": checksum(latent)}
            if text is not None:
                place["text_offset"] = _add(tar, f"{row['key']}.{TEXT_MEMBER}", text)
                place["text_length"], place["text_checksum"] = len(text), checksum(text)
            placed.append(place)
            meta = {name: value for name, value in row.items() if name not in _NOT_IN_META}
            _add(tar, f"{row['key']}.{META_MEMBER}", json.dumps(meta, sort_keys=True).encode())
    return stream.getvalue(), placed


def checksum(content: bytes) -> str:
    """CRC-32, as the manifest has it."""
    return f"{zlib.crc32(content):08x}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without time or owner; the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    header = tar.offset
    tar.addfile(member, io.BytesIO(content))
    return header + tarfile.BLOCKSIZE


def read_latent(cache_path: str, row: ManifestRow, read: ReadRange = read_range) -> np.ndarray:
    """float16 (2, F, C, h, w): mean and log-variance of a clip, unscaled. Raises CorruptShard."""
    return _read_array(cache_path, row, row["offset"], row["length"], row["checksum"], read)


def read_text(cache_path: str, row: ManifestRow, read: ReadRange = read_range) -> np.ndarray | None:
    """float16 (tokens, width): the embedding of a clip's caption; None in a cache without. Raises CorruptShard."""
    offset, length, checksum = row["text_offset"], row["text_length"], row["text_checksum"]
    if offset is None or length is None or checksum is None:
        return None
    return _read_array(cache_path, row, offset, length, checksum, read)


def _read_array(cache_path: str, row: ManifestRow, offset: int, length: int, crc: str, read: ReadRange) -> np.ndarray:
    name = f"{SHARDS}/{row['shard']}"
    try:
        content = read(f"{cache_path}/{name}", offset, length)
    except FileNotFoundError as error:
        raise CorruptShard(f"clip {row['key']}: its shard {name} is not in {cache_path}") from error
    if len(content) != length or checksum(content) != crc:
        raise CorruptShard(
            f"clip {row['key']}: {length} bytes at {offset} of {cache_path}/{name} "
            "are not those that were written; jobs/verify_cache.py --repair takes damaged shards back, to be made again"
        )
    return np.load(io.BytesIO(content), allow_pickle=False)
