"""LATENTS -> SHARD: WebDataset tars that are the same bytes whenever they hold the same clips, and reading from them.

A shard is invisible until its manifest part is written, which happens last (manifest.py). Any tar reader can read a
shard; this project reads a latent by its byte offset in the manifest.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...schema import LATENT_MEMBER, META_MEMBER, TEXT_MEMBER, ManifestRow
from ...storage.files import read_range

ReadRange = Callable[[str, int, int], bytes]  # address, offset, length -> at most `length` bytes

SHARDS = "shards"
PLACE = ("offset", "length", "checksum")  # columns that say where a latent lies; of a text they begin with text_
# columns that are not in a sample's .json, which holds what is true wherever the video and the shard lie
_NOT_IN_META = {"uri", "shard", *PLACE, *(f"text_{name}" for name in PLACE)}


class CorruptShard(ValueError):
    """A latent whose bytes are not those that were written. The message names the key and the shard."""


def npy_bytes(array: np.ndarray) -> bytes:
    """`array` as a .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def npy_array(content: bytes) -> np.ndarray:
    """The array in a .npy file. Raises ValueError, also for pickles."""
    return np.load(io.BytesIO(content), allow_pickle=False)


def set_name(keys: Iterable[str]) -> str:
    """Name of a set of clips, in any order."""
    return hashlib.blake2b("\n".join(sorted(keys)).encode(), digest_size=12).hexdigest()


def shard_name(keys: Iterable[str], tar: bytes) -> str:
    """File name of the shard `tar` that holds the clips `keys`; other bytes get another name."""
    return f"{set_name(keys)}-{hashlib.blake2b(tar, digest_size=6).hexdigest()}.tar"


def build_shard(samples: Iterable[tuple[dict[str, Any], bytes, bytes | None]]) -> tuple[bytes, list[dict[str, Any]]]:
    """Make a tar of (row, .npy of the latent, .npy of the caption's embedding or None), in the given order.

    Returns it and, for each sample, the columns of the manifest that say where its arrays lie.
    """
    stream = io.BytesIO()
    places: list[dict[str, Any]] = []
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, latent, text in samples:
            place = _place("", latent, _add(tar, f"{row['key']}.{LATENT_MEMBER}", latent))
            if text is not None:
                place |= _place("text_", text, _add(tar, f"{row['key']}.{TEXT_MEMBER}", text))
            places.append(place)
            meta = {name: value for name, value in row.items() if name not in _NOT_IN_META}
            _add(tar, f"{row['key']}.{META_MEMBER}", json.dumps(meta, sort_keys=True).encode())
    return stream.getvalue(), places


def _place(prefix: str, content: bytes, offset: int) -> dict[str, Any]:
    values = (offset, len(content), checksum(content))
    return {f"{prefix}{name}": value for name, value in zip(PLACE, values, strict=True)}


def checksum(content: bytes) -> str:
    """CRC-32, as the manifest has it."""
    return f"{zlib.crc32(content):08x}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member without time or owner; return the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    header = tar.offset
    tar.addfile(member, io.BytesIO(content))
    return header + tarfile.BLOCKSIZE


def arrays_of(row: ManifestRow) -> dict[str, tuple[int, int, str]]:
    """{member suffix: (offset, length, checksum)} of a clip's latent, and of its caption's embedding if it has one."""
    arrays = {LATENT_MEMBER: (row["offset"], row["length"], row["checksum"])}
    if row["text_offset"] is not None and row["text_length"] is not None and row["text_checksum"] is not None:
        arrays[TEXT_MEMBER] = (row["text_offset"], row["text_length"], row["text_checksum"])
    return arrays


def read_latent(cache_path: str, row: ManifestRow, read: ReadRange = read_range) -> np.ndarray:
    """float16 (2, F, C, h, w): mean and log-variance of a clip, unscaled. Raises CorruptShard."""
    return _read_array(cache_path, row, LATENT_MEMBER, read)


def read_text(cache_path: str, row: ManifestRow, read: ReadRange = read_range) -> np.ndarray | None:
    """float16 (tokens, width): the embedding of a clip's caption; None in a cache without. Raises CorruptShard."""
    return _read_array(cache_path, row, TEXT_MEMBER, read) if TEXT_MEMBER in arrays_of(row) else None


def _read_array(cache_path: str, row: ManifestRow, suffix: str, read: ReadRange) -> np.ndarray:
    offset, length, crc = arrays_of(row)[suffix]
    name = f"{SHARDS}/{row['shard']}"
    try:
        content = read(f"{cache_path}/{name}", offset, length)
    except FileNotFoundError as error:
        raise CorruptShard(f"clip {row['key']}: its shard {name} is not in {cache_path}") from error
    if len(content) != length or checksum(content) != crc:
        raise CorruptShard(
            f"clip {row['key']}: {length} bytes at {offset} of {cache_path}/{name} are not those that were written; "
            "jobs/verify_cache.py --repair takes damaged shards back, to be made again"
        )
    return npy_array(content)
