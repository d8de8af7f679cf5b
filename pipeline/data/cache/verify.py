"""CACHE -> FINDINGS: whether everything that the manifest promises is there, byte for byte, and what lies about besides.

check_shards     every committed latent against its checksum, index, tar and shape
check_source     committed clips against the videos that the source has now
uncommit         take damaged shards back, so that the next caching job makes their clips again
find_orphans     files that no manifest part speaks of: what killed jobs leave
"""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import UserError
from ...schema import LATENT_MEMBER, MANIFEST_SCHEMA, META_MEMBER, TEXT_MEMBER, ManifestRow
from ...storage.files import entries, is_s3, list_files, read_all, read_bytes, remove
from ...storage.s3 import abort_upload, unfinished_uploads
from .info import CacheSpec
from .manifest import MANIFEST, REJECTS
from .shards import SHARDS, checksum

AT_ONCE = 4  # shards that are read at the same time; each is in memory


class Finding(NamedTuple):
    """Something wrong with a shard."""

    part: str  # address of its manifest part
    shard: str  # file name, "" if not known
    key: str  # of the clip, "" if it is the whole shard
    problem: str


class Orphan(NamedTuple):
    """Something that no manifest part speaks of."""

    address: str
    size: int  # bytes; 0 where it is not known
    modified: float  # seconds since the epoch
    upload: str | None = None  # id, if it is an upload to S3 that nobody finished


class Checked(NamedTuple):
    """What was read of one shard."""

    clips: int
    size: int  # bytes of its tar
    findings: list[Finding]


def check_shards(path: str, spec: CacheSpec) -> Iterator[Checked]:
    """Read every shard of the cache once, whole."""
    parts = list_files(f"{path}/{MANIFEST}", ".parquet")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda part: _check_shard(path, part, spec), parts)


def _check_shard(path: str, part: str, spec: CacheSpec) -> Checked:
    try:
        table = pq.read_table(io.BytesIO(read_bytes(part))).cast(MANIFEST_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError) as error:
        return Checked(0, 0, [Finding(part, "", "", f"the manifest part is unreadable ({_line(error)})")])
    findings, size = [], 0
    for shard in table["shard"].unique().to_pylist():
        rows: list[ManifestRow] = table.filter(pc.equal(table["shard"], shard)).to_pylist()
        try:
            tar = read_bytes(f"{path}/{SHARDS}/{shard}")
        except FileNotFoundError:
            findings.append(Finding(part, shard, "", "the tar is gone"))
            continue
        size += len(tar)
        findings += [Finding(part, shard, key, problem) for key, problem in _check_tar(tar, rows, spec)]
    return Checked(table.num_rows, size, findings)


def _check_tar(tar: bytes, rows: list[ManifestRow], spec: CacheSpec) -> Iterator[tuple[str, str]]:
    """(key, or "" for the whole tar; what is wrong)."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            members = {member.name: member for member in opened.getmembers()}
    except tarfile.TarError as error:
        yield "", f"the tar is unreadable ({_line(error)})"
        return
    expected = set()
    for row in rows:
        placed = {LATENT_MEMBER: (row["offset"], row["length"], row["checksum"])}
        if row["text_offset"] is not None:
            assert row["text_length"] is not None and row["text_checksum"] is not None
            placed[TEXT_MEMBER] = (row["text_offset"], row["text_length"], row["text_checksum"])
        for suffix, (offset, length, crc) in placed.items():
            name = f"{row['key']}.{suffix}"
            expected.add(name)
            member = members.get(name)
            content = tar[offset : offset + length]
            if member is None or (member.offset_data, member.size) != (offset, length):
                where = "not in the tar" if member is None else f"at {member.offset_data}, {member.size} bytes"
                yield row["key"], f"{suffix} is {where}; the index says at {offset}, {length} bytes"
            elif len(content) != length or checksum(content) != crc:
                yield row["key"], f"{suffix} has another checksum than when it was written"
            elif suffix == LATENT_MEMBER and (problem := _misshapen(content, spec)):
                yield row["key"], problem
        expected.add(f"{row['key']}.{META_MEMBER}")
        yield from ((row["key"], problem) for problem in _check_meta(tar, members, row))
    if extra := members.keys() - expected:
        yield "", f"{len(extra)} members that the index does not know, for example {min(extra)}"


def _misshapen(content: bytes, spec: CacheSpec) -> str:
    latent = np.load(io.BytesIO(content), allow_pickle=False)
    wanted = (2, *spec.latent_shape)
    if latent.dtype != np.float16 or latent.shape != wanted:
        return f"the latent is {latent.dtype} {latent.shape}, not float16 {wanted}"
    return "" if np.isfinite(latent).all() else "the latent has infinite or undefined values"


def _check_meta(tar: bytes, members: dict[str, tarfile.TarInfo], row: ManifestRow) -> Iterator[str]:
    member = members.get(f"{row['key']}.{META_MEMBER}")
    try:
        meta = json.loads(tar[member.offset_data : member.offset_data + member.size]) if member else {}
    except ValueError:
        meta = {}
    if meta.get("video") != row["video"]:
        yield f"{META_MEMBER} {'is missing' if member is None else 'does not describe this clip'}"


def check_source(made: pa.Table, plan: pa.Table) -> dict[str, pa.Table]:
    """{"gone": ..., "changed": ...}: clips of the manifest `made` whose video the source no longer has, or has in
    another size."""
    columns = ["key", "video", "size"]
    videos = plan.select(["video", "size"]).group_by(["video"]).aggregate([("size", "max")])
    found = made.select(columns).join(videos, "video", join_type="left outer")
    gone = found.filter(pc.or_kleene(pc.is_null(found["size_max"]), pc.equal(found["size_max"], 0)))
    known = found.filter(pc.and_(pc.greater(found["size_max"], 0), pc.greater_equal(found["size"], 0)))
    changed = known.filter(pc.not_equal(known["size"], known["size_max"]))
    return {"gone": gone.sort_by("video"), "changed": changed.sort_by("video")}


def uncommit(path: str, findings: list[Finding]) -> int:
    """Remove the manifest parts of damaged shards; their tars become orphans. Returns how many."""
    parts = sorted({finding.part for finding in findings})
    for part in parts:
        remove(part)
    return len(parts)


def find_orphans(path: str, older_than: float) -> tuple[list[Orphan], list[str]]:
    """(what no manifest part speaks of, last written at least `older_than` seconds ago; tars that parts speak of and
    that are gone).

    Tars are listed before the parts are read: one that is committed in between is no orphan. Raises UserError if a
    part cannot be read, for then nobody knows.
    """
    latest = time.time() - older_than
    tars = [entry for entry in entries(f"{path}/{SHARDS}", hidden=True) if entry.address.endswith(".tar")]
    parts = list_files(f"{path}/{MANIFEST}", ".parquet")
    wanted: set[str] = set()
    for part, content in zip(parts, read_all(parts), strict=True):
        try:
            wanted.update(pq.read_table(io.BytesIO(content), columns=["shard"])["shard"].unique().to_pylist())
        except (pa.ArrowException, KeyError) as error:
            raise UserError(f"{part}: unreadable ({_line(error)}); run jobs/verify_cache.py --repair first") from error
    found = [Orphan(entry.address, entry.size, entry.modified) for entry in tars if _name(entry.address) not in wanted]
    if is_s3(path):
        found += [Orphan(address, 0, begun, upload) for address, upload, begun in unfinished_uploads(path)]
    else:
        for folder in (path, *(f"{path}/{name}" for name in (SHARDS, MANIFEST, REJECTS))):
            beside = (entry for entry in entries(folder, hidden=True) if _unfinished(_name(entry.address)))
            found += [Orphan(entry.address, entry.size, entry.modified) for entry in beside]
    names = {_name(entry.address) for entry in tars}
    return sorted(orphan for orphan in found if orphan.modified <= latest), sorted(wanted - names)


def remove_orphans(orphans: list[Orphan]) -> None:
    for orphan in orphans:
        if orphan.upload is None:
            remove(orphan.address)
        else:
            abort_upload(orphan.address, orphan.upload)


def _unfinished(name: str) -> bool:
    """Whether a file is one that storage.write_bytes has not renamed yet."""
    return name.startswith(".") and name.endswith(".tmp")


def _name(address: str) -> str:
    return address.rpartition("/")[2]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
