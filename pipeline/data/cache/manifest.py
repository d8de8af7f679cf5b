"""Read the manifest of a cache: its committed clips and the rejected ones.

CACHE/cache.json                    settings that decide a latent's value, their hash, classes (info.CacheSpec)
CACHE/shards/CLIPS-BYTES.tar        latents; CLIPS and BYTES: hashes of the set of clips and of the tar
CACHE/manifest/CLIPS.parquet        one row for each clip of that shard; written last, it commits the shard
CACHE/rejects/rROUND-CLIPS.parquet  rejected clips; the latest round that tried a clip counts
CACHE/lock.json                     the job that writes here, while one does (lease.py)

Commits are safe whoever makes them, however often, at the same time or half: a tar's name holds its hash, so no
file that a manifest part points to is ever overwritten by another, and a reader takes every clip once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import UserError
from ...schema import IDENTITY, MANIFEST_SCHEMA, NULL_TEXT, REJECTED_SCHEMA, ManifestRow
from ...storage.files import list_files, read_all, read_bytes
from ..plan.clips import distinct
from .info import CacheSpec, require_spec
from .shards import npy_array

MANIFEST, REJECTS = "manifest", "rejects"
BY_IDENTITY = [(name, "ascending") for name in IDENTITY]
AT_ONCE = 1024  # rows that are dictionaries at the same time, when all are gone through


class Rows(Sequence[ManifestRow]):
    """A MANIFEST_SCHEMA table as a sequence of its rows.

    A row becomes a dictionary when it is asked for: millions of dictionaries would fill a machine's memory.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> ManifestRow: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows": ...
    def __getitem__(self, index: int | slice) -> "ManifestRow | Rows":
        if isinstance(index, slice):
            return Rows(self.table.take(pa.array(range(*index.indices(len(self))), pa.int64())))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.table.slice(index % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[ManifestRow]:
        for batch in self.table.to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.table.equals(other.table)

    def spread(self, count: int, columns: Sequence[str] = ()) -> "Rows":
        """`count` rows, evenly over all, or over all sorted by `columns`; all if there are no more."""
        places = spread(len(self), count)
        if columns:
            places = pc.sort_indices(self.table, [(column, "ascending") for column in columns]).take(places)
        return Rows(self.table.take(places))


def spread(total: int, count: int) -> pa.Array:
    """(count,) int64: places spread evenly over `total`; all of them if there are no more."""
    count = min(count, total)
    return pa.array([index * total // count for index in range(count)], pa.int64())


@dataclass(frozen=True)
class Cache:
    """A committed cache: MANIFEST_SCHEMA and REJECTED_SCHEMA tables, each sorted, no clip twice."""

    path: str
    spec: CacheSpec
    table: pa.Table
    rejected: pa.Table

    @cached_property
    def rows(self) -> Rows:
        """All clips, sorted by key."""
        return Rows(self.table)

    def select(self, split: str) -> Rows:
        """The clips of one split, sorted by key."""
        return Rows(self.table.filter(pc.equal(self.table["split"], split)))


def open_cache(path: str) -> Cache:
    """Read a cache's manifest and cache.json. Raises UserError if there is no cache at `path`, or nothing in it."""
    spec = require_spec(path)
    table = read_manifest(path)
    left = read_rejected(path).join(table.select(IDENTITY), IDENTITY, join_type="left anti")  # some were cached later
    cache = Cache(path, spec, table, left.sort_by(BY_IDENTITY))
    if not cache.table.num_rows:
        raise UserError(f"{path}: the cache holds no clips yet; run jobs/cache_latents.py to its end")
    return cache


def read_null_text(path: str) -> np.ndarray:
    """float16 (tokens, width): the embedding of the empty caption. Raises UserError where the cache has none."""
    address = f"{path}/{NULL_TEXT}"
    try:
        return npy_array(read_bytes(address))
    except FileNotFoundError as error:
        raise UserError(f"{address}: missing from the cache; cache again, or set train.label_dropout 0") from error


def read_manifest(path: str) -> pa.Table:
    """Return every committed clip once, sorted by key. A task that Ray ran again may have committed some twice."""
    parts = list_files(f"{path}/{MANIFEST}", ".parquet")
    table = read_parts(parts, MANIFEST_SCHEMA).sort_by([("key", "ascending"), ("shard", "ascending")])
    return distinct(table, table["key"])


def read_columns(path: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """Return these columns of the manifest, as these types, in no order.

    A clip that was committed twice is there twice. For millions of clips this takes a fraction of read_manifest's time.
    """
    return read_parts(list_files(f"{path}/{MANIFEST}", ".parquet"), pa.schema(list(columns.items())))


def read_rejected(path: str) -> pa.Table:
    """Return every rejected clip once, as the latest round that tried it found it, sorted by identity."""
    parts = list_files(f"{path}/{REJECTS}", ".parquet")
    table = read_parts(parts, REJECTED_SCHEMA, number="part").sort_by([*BY_IDENTITY, ("part", "descending")])
    return distinct(table, identities(table)).drop_columns(["part"])


def identities(table: pa.Table) -> pa.ChunkedArray:
    """IDENTITY of each row as one string."""
    assert IDENTITY == ["video", "size", "ordinal", "flip"]
    numbers = (table["size"], table["ordinal"], table["flip"].cast(pa.int8()))
    return pc.binary_join_element_wise(table["video"], *(number.cast(pa.string()) for number in numbers), "\0")


def committed_parts(path: str) -> list[str]:
    """List the files that commits wrote: a fingerprint of the cache's contents, without opening a file."""
    return [part for folder in (MANIFEST, REJECTS) for part in list_files(f"{path}/{folder}", ".parquet")]


def next_round(path: str) -> int:
    """Return the number of the next run that may reject clips, from 1."""
    names = (part.rsplit("/", 1)[-1] for part in list_files(f"{path}/{REJECTS}", ".parquet"))
    return 1 + max((int(found[1]) for name in names if (found := re.match(r"r(\d+)-", name))), default=0)


def read_parts(parts: list[str], schema: pa.Schema, number: str | None = None) -> pa.Table:
    """Read the files `parts` as `schema`; `number` names a further column, for the index of the file.

    Raises UserError if a file is unreadable.
    """
    tables = []
    for index, content in enumerate(read_all(parts)):
        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            table = file.read(schema.names, use_threads=False).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"{parts[index]}: unreadable; jobs/verify_cache.py --repair takes it back") from error
        if number is not None:
            table = table.append_column(number, pa.repeat(pa.scalar(index, pa.int32()), table.num_rows))
        tables.append(table)
    wanted = schema if number is None else schema.append(pa.field(number, pa.int32()))
    return pa.concat_tables([wanted.empty_table(), *tables]).unify_dictionaries().combine_chunks()
