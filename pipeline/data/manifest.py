"""What a cache says of itself: cache.json, the manifest parts that commit shards, and the rejects.

CACHE/cache.json             settings that decide a latent's value, their hash, classes (schema.CacheInfo)
CACHE/shards/NAME.tar        latents
CACHE/manifest/NAME.parquet  one row a clip of that shard; written last, its presence commits the shard
CACHE/rejects/NAME.parquet   clips that could not be used
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shards import SHARDS, build_shard, shard_name
from pipeline.models.vae_files import vae_identity
from pipeline.schema import MANIFEST_SCHEMA, REJECT_SCHEMA, CacheInfo, ManifestRow
from pipeline.settings import LATENT_CHANNELS, VAE_DOWNSAMPLING, Settings, UserError
from pipeline.storage import list_files, read_bytes, read_json, write_bytes, write_json

VERSION = 1
INFO, MANIFEST, REJECTS = "cache.json", "manifest", "rejects"
IDENTITY = ["video", "size", "ordinal"]  # of a planned clip, before and after it is made


VAE_HASH = "vae.path (hash of its weights)"  # a key of CacheInfo.settings


@dataclass(frozen=True)
class Cache:
    """A committed cache: MANIFEST_SCHEMA and REJECT_SCHEMA tables, each sorted, no clip twice."""

    path: str
    info: CacheInfo
    table: pa.Table
    rejects: pa.Table

    @cached_property
    def rows(self) -> list[ManifestRow]:
        """All clips, sorted by key."""
        return self.table.to_pylist()

    @property
    def vae_weights_hash(self) -> str:
        return self.info["settings"][VAE_HASH]

    def select(self, split: str) -> list[ManifestRow]:
        """The clips of one split, sorted by key."""
        return [row for row in self.rows if row["split"] == split]


def open_cache(path: str) -> Cache:
    """Raises UserError if there is no cache at `path`, or nothing in it."""
    info = read_info(path)
    if info is None:
        raise UserError(f"{path}: no cache there; make one with jobs/cache_latents.py, or give another --cache.path")
    cache = Cache(path, info, read_manifest(path), read_rejects(path))
    if not cache.table.num_rows:
        raise UserError(f"{path}: the cache holds no clips yet; run jobs/cache_latents.py to its end")
    return cache


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
        "data.stride": data.stride,
        "data.clips_per_video": data.clips_per_video,
        "data.short_video": data.short_video,
        "data.height": data.height,
        "data.width": data.width,
        "vae.dtype": settings.vae.dtype,
        VAE_HASH: weights_hash,
    }
    digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()
    return CacheInfo(
        version=VERSION,
        fingerprint=digest,
        settings=decisive,
        scaling_factor=scaling_factor,
        latent_shape=[
            data.frames,
            LATENT_CHANNELS,
            data.height // VAE_DOWNSAMPLING,
            data.width // VAE_DOWNSAMPLING,
        ],
        classes=classes,
    )


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
    """Write cache.json; classes that an earlier run found stay."""
    earlier = read_info(path)
    classes = sorted({*info["classes"], *(earlier["classes"] if earlier else [])})
    if earlier is None or earlier["classes"] != classes:
        write_json(f"{path}/{INFO}", {**info, "classes": classes})


def read_manifest(path: str) -> pa.Table:
    """Every committed clip once, sorted by key. A task that Ray ran again may have committed one twice."""
    table = _read_parts(path, MANIFEST, MANIFEST_SCHEMA).sort_by([("key", "ascending"), ("shard", "ascending")])
    return _without_repeats(table, "key")


def read_rejects(path: str) -> pa.Table:
    """Every reject, once."""
    table = _read_parts(path, REJECTS, REJECT_SCHEMA)
    order = [(name, "ascending") for name in IDENTITY]
    rows = table.sort_by(order).to_pylist()
    kept = {tuple(row[name] for name in IDENTITY): row for row in rows}
    return pa.Table.from_pylist(list(kept.values()), schema=REJECT_SCHEMA)


def _without_repeats(table: pa.Table, column: str) -> pa.Table:
    """Rows of a table sorted by `column` whose value differs from the row before."""
    values = table[column].to_numpy()
    keep = pa.array([True, *(values[1:] != values[:-1])][: len(values)], pa.bool_())
    return table.filter(keep)


def _read_parts(path: str, folder: str, schema: pa.Schema) -> pa.Table:
    parts = [pq.read_table(io.BytesIO(read_bytes(part))) for part in list_files(f"{path}/{folder}", ".parquet")]
    return pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()


def commit_clips(batch: pa.Table, path: str) -> pa.Table:
    """map_batches over tasks, a shard of ENCODED_SCHEMA rows in, one row out: clips, rejects, bytes."""
    clips, rejects, size = commit(path, batch)
    return pa.table({"clips": [clips], "rejects": [rejects], "bytes": [size]})


def commit(path: str, rows: pa.Table) -> tuple[int, int, int]:
    """Write a shard of the ENCODED_SCHEMA rows that have a latent, then its manifest part; rejects of the
    others.

    The same rows give the same files, so that Ray may run this again. Returns (clips, rejects, bytes of the
    tar).
    """
    good = rows.filter(rows["reason"].is_null()).sort_by("key")
    bad = rows.filter(rows["reason"].is_valid())
    if bad.num_rows:
        rejects = bad.select(REJECT_SCHEMA.names).sort_by([(name, "ascending") for name in IDENTITY])
        named = [json.dumps([row[name] for name in IDENTITY]) for row in rejects.select(IDENTITY).to_pylist()]
        write_bytes(f"{path}/{REJECTS}/{shard_name(named).removesuffix('.tar')}.parquet", _parquet(rejects))
    if not good.num_rows:
        return 0, bad.num_rows, 0
    latents = [value.as_buffer() for value in good["latent"]]
    described = good.select([name for name in MANIFEST_SCHEMA.names if name in good.column_names]).to_pylist()
    name = shard_name(row["key"] for row in described)
    tar, placed = build_shard(list(zip(described, latents, strict=True)))
    write_bytes(f"{path}/{SHARDS}/{name}", tar)
    manifest = [{**row, **place, "shard": name} for row, place in zip(described, placed, strict=True)]
    part = _parquet(pa.Table.from_pylist(manifest, schema=MANIFEST_SCHEMA))
    write_bytes(f"{path}/{MANIFEST}/{name.removesuffix('.tar')}.parquet", part)
    return good.num_rows, bad.num_rows, len(tar)


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
