"""What a cache says of itself: cache.json, the manifest parts that commit shards, and the rejects.

CACHE/cache.json             settings that decide a latent's value, their hash, classes (schema.CacheInfo)
CACHE/shards/CLIPS-BYTES.tar        latents; CLIPS and BYTES: hashes of the set of clips and of the tar
CACHE/manifest/CLIPS.parquet        one row a clip of that shard; written last, its presence commits the shard
CACHE/rejects/rROUND-CLIPS.parquet  clips that could not be used; a later round counts where one was tried again
CACHE/lock.json                     who writes here, while somebody does (lock.py)

Commits are safe whoever makes them, however often, at the same time or half: a tar's name holds its hash, so no
file that a manifest part points to is ever overwritten by another, and a reader takes every clip once.
"""

import hashlib
import io
import json
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.rows import Rows
from pipeline.data.shards import SHARDS, build_shard, set_name, shard_name
from pipeline.models.text_files import find_text_encoder, text_identity
from pipeline.models.vae_files import vae_geometry, vae_identity
from pipeline.schema import IDENTITY, MANIFEST_SCHEMA, NULL_TEXT, REJECT_SCHEMA, CacheInfo
from pipeline.settings import VAE_DOWNSAMPLING, Settings, UserError
from pipeline.storage import exists, list_files, read_all, read_bytes, read_json, write_bytes, write_json

VERSION = 1
REJECTS_SAID = 5  # of a commit, in the log
INFO, MANIFEST, REJECTS = "cache.json", "manifest", "rejects"


_BY_IDENTITY = [(name, "ascending") for name in IDENTITY]
VAE_HASH = "vae.path (hash of its weights)"  # a key of CacheInfo.settings


@dataclass(frozen=True)
class Cache:
    """A committed cache: MANIFEST_SCHEMA and REJECT_SCHEMA tables, each sorted, no clip twice."""

    path: str
    info: CacheInfo
    table: pa.Table
    rejects: pa.Table

    @cached_property
    def rows(self) -> Rows:
        """All clips, sorted by key."""
        return Rows(self.table)

    @property
    def vae_weights_hash(self) -> str:
        return self.info["settings"][VAE_HASH]

    def select(self, split: str) -> Rows:
        """The clips of one split, sorted by key."""
        return Rows(self.table.filter(pc.equal(self.table["split"], split)))


def open_cache(path: str) -> Cache:
    """Raises UserError if there is no cache at `path`, or nothing in it."""
    info = require_info(path)
    table = read_manifest(path)
    rejects = read_rejects(path).join(table.select(IDENTITY), IDENTITY, join_type="left anti")  # some came right later
    cache = Cache(path, info, table, rejects.sort_by(_BY_IDENTITY))
    if not cache.table.num_rows:
        raise UserError(f"{path}: the cache holds no clips yet; run jobs/cache_latents.py to its end")
    return cache


def require_info(path: str) -> CacheInfo:
    """As read_info. Raises UserError if there is no cache."""
    info = read_info(path)
    if info is None:
        raise UserError(f"{path}: no cache there; make one with jobs/cache_latents.py, or give another --cache.path")
    return info


def read_info(path: str) -> CacheInfo | None:
    """cache.json, or None if there is none. Raises UserError if it is unreadable or of another version."""
    address = f"{path}/{INFO}"
    try:
        info = read_json(address)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{address}: not valid JSON ({error}); give another --cache.path, or delete that cache"
        ) from error
    if not isinstance(info, dict) or info.get("version") != VERSION:
        found = info.get("version") if isinstance(info, dict) else None
        raise UserError(f"{address}: is of version {found}, expected {VERSION}; give another --cache.path")
    return info  # type: ignore[return-value]


def describe(settings: Settings, classes: list[str]) -> CacheInfo:
    """What cache.json says of a cache made with `settings`. Raises UserError if the VAE cannot be found."""
    weights_hash, scaling_factor = vae_identity(settings.vae.path)
    data = settings.data
    decisive: dict[str, Any] = {
        "data.frames": data.frames,
        "data.window": data.window,
        "data.stride": data.stride if isinstance(data.stride, int) else list(data.stride),
        "data.clips_per_video": data.clips_per_video,
        "data.clip_starts": data.clip_starts,
        "data.clip_seed": data.clip_seed,
        "data.flip": data.flip,
        "data.short_video": data.short_video,
        "data.height": data.height,
        "data.width": data.width,
        "vae.dtype": settings.vae.dtype,
        VAE_HASH: weights_hash,
    }
    text_shape = None
    if settings.text.path is not None:
        files = find_text_encoder(settings.text.path, settings.text.tokenizer)
        text_shape = [settings.text.max_length, files.width]
        decisive |= {
            "text.path (hash of its files)": text_identity(files),
            "text.layer": settings.text.layer,
            "text.max_length": settings.text.max_length,
            "text.dtype": settings.text.dtype,
        }
    digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()
    return CacheInfo(
        version=VERSION,
        fingerprint=digest,
        settings=decisive,
        scaling_factor=scaling_factor,
        latent_shape=latent_shape(settings),
        text_shape=text_shape,
        classes=classes,
    )


def read_null_text(path: str) -> np.ndarray:
    """float16 (tokens, width): the embedding of the empty caption. Raises UserError where the cache has none."""
    address = f"{path}/{NULL_TEXT}"
    try:
        return np.load(io.BytesIO(read_bytes(address)), allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(
            f"{address}: missing, the cache was made without it; cache again, or set train.label_dropout 0"
        ) from error


def latent_shape(settings: Settings) -> list[int]:
    """F, C, h, w of a clip's latent. Raises UserError if the VAE cannot be found, or cannot take so many frames."""
    data = settings.data
    channels, temporal = vae_geometry(settings.vae.path)
    if temporal > 1 and (data.frames - 1) % (2 * temporal):
        fewer = data.frames - (data.frames - 1) % (2 * temporal)
        raise UserError(
            f"data.frames = {data.frames}: the VAE of vae.path = {settings.vae.path} gives back 1 + a multiple of "
            f"{2 * temporal} frames; set {fewer} or {fewer + 2 * temporal}"
        )
    frames = (data.frames - 1) // temporal + 1
    return [frames, channels, data.height // VAE_DOWNSAMPLING, data.width // VAE_DOWNSAMPLING]


def check_same(path: str, found: CacheInfo, wanted: CacheInfo) -> None:
    """Raise UserError, with each difference, if the cache was made with other settings than `wanted`."""
    if found["fingerprint"] == wanted["fingerprint"]:
        return
    ours, theirs = wanted["settings"], found["settings"]
    differences = [
        f"{key}: cache has {_short(theirs.get(key))}, settings say {_short(ours.get(key))}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    raise UserError(
        f"{path}: this cache was made with other settings ({'; '.join(differences)}); "
        "set them alike, or make a new cache with another --cache.path or --run.name"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def write_info(path: str, info: CacheInfo) -> None:
    """Write cache.json; classes that an earlier run found stay. Raises UserError if that had other settings."""
    earlier = read_info(path)
    if earlier is not None:
        check_same(path, earlier, info)
    classes = sorted({*info["classes"], *(earlier["classes"] if earlier else [])})
    if earlier is None or earlier["classes"] != classes:
        write_json(f"{path}/{INFO}", {**info, "classes": classes})


def read_manifest(path: str) -> pa.Table:
    """Every committed clip once, sorted by key. A task that Ray ran again may have committed one twice."""
    parts = list_files(f"{path}/{MANIFEST}", ".parquet")
    table = _read_parts(parts, MANIFEST_SCHEMA).sort_by([("key", "ascending"), ("shard", "ascending")])
    return _first_of_each(table, ["key"])


def read_columns(path: str, columns: dict[str, pa.DataType]) -> pa.Table:
    """These columns of the manifest, of these types, as it was committed: in no order, and a clip that was committed
    twice is there twice. At millions of clips a fraction of what read_manifest takes.
    """
    return _read_parts(list_files(f"{path}/{MANIFEST}", ".parquet"), pa.schema(list(columns.items())))


def read_rejects(path: str) -> pa.Table:
    """Every reject once, as it was found in the latest round that tried it, sorted by identity."""
    parts = list_files(f"{path}/{REJECTS}", ".parquet")
    table = _read_parts(parts, REJECT_SCHEMA, number="part").sort_by([*_BY_IDENTITY, ("part", "descending")])
    return _first_of_each(table, IDENTITY).drop_columns(["part"])


def committed_parts(path: str) -> list[str]:
    """What commits left so far: a fingerprint of the cache's contents that is read without opening a file."""
    return [part for folder in (MANIFEST, REJECTS) for part in list_files(f"{path}/{folder}", ".parquet")]


def next_round(path: str) -> int:
    """The number of the next run that may add rejects, from 1."""
    names = (part.rsplit("/", 1)[-1] for part in list_files(f"{path}/{REJECTS}", ".parquet"))
    return 1 + max((int(found[1]) for name in names if (found := re.match(r"r(\d+)-", name))), default=0)


def _first_of_each(table: pa.Table, columns: list[str]) -> pa.Table:
    """Rows of a table sorted by `columns` that differ there from the row before."""
    if table.num_rows < 2:
        return table
    differs = pa.array([False] * (table.num_rows - 1))
    for column in columns:
        values = table[column].combine_chunks()
        differs = pc.or_(differs, pc.not_equal(values[1:], values[:-1]))
    return table.filter(pa.concat_arrays([pa.array([True]), differs]))


def _read_parts(parts: list[str], schema: pa.Schema, number: str | None = None) -> pa.Table:
    """The rows of the files `parts`, as `schema`; `number`: a further column for the index of the file."""
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


def commit_clips(batch: pa.Table, path: str, round_number: int) -> pa.Table:
    """map_batches over tasks, a shard of ENCODED_SCHEMA rows in, one row out: clips, reasons of rejects, bytes."""
    clips, reasons, size = commit(path, batch, round_number)
    for row in batch.filter(batch["reason"].is_valid()).select(REJECT_SCHEMA.names).slice(0, REJECTS_SAID).to_pylist():
        log = logging.getLogger(row["stage"])
        log.warning("%s, window %d: %s, %s", row["video"], row["ordinal"], row["reason"], row["detail"])
    return pa.table({"clips": [clips], "reasons": pa.array([reasons], pa.list_(pa.string())), "bytes": [size]})


def commit(path: str, rows: pa.Table, round_number: int = 1) -> tuple[int, list[str], int]:
    """Write a shard of the ENCODED_SCHEMA rows that have a latent, then its manifest part; rejects of the
    others.

    Done again with the same clips, as Ray may, it changes nothing. Returns (clips, reasons of the rejects,
    bytes of the latents).
    """
    good = rows.filter(rows["reason"].is_null()).sort_by("key")
    bad = rows.filter(rows["reason"].is_valid())
    if bad.num_rows:
        rejects = bad.select(REJECT_SCHEMA.names).sort_by(_BY_IDENTITY)
        named = [json.dumps([row[name] for name in IDENTITY]) for row in rejects.select(IDENTITY).to_pylist()]
        write_bytes(f"{path}/{REJECTS}/r{round_number:04d}-{set_name(named)}.parquet", _parquet(rejects))
    size = pc.sum(pc.binary_length(good["latent"])).as_py() or 0
    keys = good["key"].to_pylist()
    part = f"{path}/{MANIFEST}/{set_name(keys)}.parquet"
    if keys and not exists(part):
        _write_shard(path, part, good, keys)
    return len(keys), bad["reason"].to_pylist(), size


def _write_shard(path: str, part: str, good: pa.Table, keys: list[str]) -> None:
    latents = [value.as_buffer() for value in good["latent"]]
    described = good.select([name for name in MANIFEST_SCHEMA.names if name in good.column_names]).to_pylist()
    texts = [value.as_buffer() if value.is_valid else None for value in good["text"]]
    tar, placed = build_shard(list(zip(described, latents, strict=True)), texts)
    name = shard_name(keys, tar)
    write_bytes(f"{path}/{SHARDS}/{name}", tar)
    manifest = [{**row, **place, "shard": name} for row, place in zip(described, placed, strict=True)]
    write_bytes(part, _parquet(pa.Table.from_pylist(manifest, schema=MANIFEST_SCHEMA)))


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
