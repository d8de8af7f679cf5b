"""ENCODED ROWS -> SHARD: write a tar, then the manifest part that makes it count (layout: manifest.py)."""

import io
import json
import logging

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...schema import IDENTITY, MANIFEST_SCHEMA, REJECTED_SCHEMA
from ...storage.files import exists, write_bytes
from .manifest import BY_IDENTITY, MANIFEST, REJECTS
from .shards import SHARDS, build_shard, set_name, shard_name

REJECTED_LINES = 5  # of a commit, in the log


def commit_clips(batch: pa.Table, path: str, round_number: int) -> pa.Table:
    """map_batches over tasks, a shard of ENCODED_SCHEMA rows in, one row out: clips, reasons of the rejected, bytes."""
    clips, reasons, size = commit(path, batch, round_number)
    rejected = batch.filter(batch["reason"].is_valid()).select(REJECTED_SCHEMA.names)
    for row in rejected.slice(0, REJECTED_LINES).to_pylist():
        log = logging.getLogger(row["stage"])
        log.warning("%s, window %d: %s, %s", row["video"], row["ordinal"], row["reason"], row["detail"])
    return pa.table({"clips": [clips], "reasons": pa.array([reasons], pa.list_(pa.string())), "bytes": [size]})


def commit(path: str, rows: pa.Table, round_number: int = 1) -> tuple[int, list[str], int]:
    """Write a shard of the ENCODED_SCHEMA rows that have a latent, then its manifest part; list the others in rejects/.

    Done again with the same clips, as Ray may, it changes nothing. Returns (clips, reasons of the rejected ones, bytes
    of the latents).
    """
    good = rows.filter(rows["reason"].is_null()).sort_by("key")
    bad = rows.filter(rows["reason"].is_valid())
    if bad.num_rows:
        rejected = bad.select(REJECTED_SCHEMA.names).sort_by(BY_IDENTITY)
        named = [json.dumps([row[name] for name in IDENTITY]) for row in rejected.select(IDENTITY).to_pylist()]
        write_bytes(f"{path}/{REJECTS}/r{round_number:04d}-{set_name(named)}.parquet", _parquet(rejected))
    size = pc.sum(pc.binary_length(good["latent"])).as_py() or 0
    keys = good["key"].to_pylist()
    part = f"{path}/{MANIFEST}/{set_name(keys)}.parquet"
    if keys and not exists(part):
        _write_shard(path, part, good, keys)
    return len(keys), bad["reason"].to_pylist(), size


def _write_shard(path: str, part: str, good: pa.Table, keys: list[str]) -> None:
    rows = good.select([name for name in MANIFEST_SCHEMA.names if name in good.column_names]).to_pylist()
    latents = [value.as_buffer() for value in good["latent"]]
    texts = [value.as_buffer() if value.is_valid else None for value in good["text"]]
    tar, places = build_shard(zip(rows, latents, texts, strict=True))
    name = shard_name(keys, tar)
    write_bytes(f"{path}/{SHARDS}/{name}", tar)
    manifest = [{**row, **place, "shard": name} for row, place in zip(rows, places, strict=True)]
    write_bytes(part, _parquet(pa.Table.from_pylist(manifest, schema=MANIFEST_SCHEMA)))


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
