"""CACHE -> FINDINGS: check every committed byte, and list orphaned files.

check_shards     compare every committed latent with its checksum, index, tar and shape
check_source     compare committed clips with the videos that the source has now
uncommit         take damaged shards back, so that the next caching job makes their clips again
find_orphans     list the files that no manifest part names: killed jobs leave them
"""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ...schema import LATENT_MEMBER, MANIFEST_SCHEMA, META_MEMBER, ManifestRow
from ...storage.files import entries, is_s3, list_files, read_bytes, remove
from ...storage.s3 import abort_upload, unfinished_uploads
from ..decode.fetch import one_line
from .info import CacheSpec
from .manifest import MANIFEST, REJECTS, read_columns, read_parts
from .shards import SHARDS, arrays_of, checksum, npy_array

AT_ONCE = 4  # shards that are read at the same time; each is in memory


class Finding(NamedTuple):
    """Something wrong with a shard."""

    part: str  # address of its manifest part
    shard: str  # file name, "" if not known
    key: str  # of the clip; "" for the whole shard
    problem: str


class Orphan(NamedTuple):
    """A file or upload that no manifest part names."""

    address: str
    size: int  # bytes; 0 if unknown
    modified: float  # seconds since the epoch
    upload: str | None = None  # id of an unfinished upload to S3


class Checked(NamedTuple):
    """The result for one manifest part."""

    clips: int
    size: int  # bytes of its tars
    findings: list[Finding]


def check_shards(path: str, spec: CacheSpec) -> Iterator[Checked]:
    """Read every shard of the cache once, whole."""
    parts = list_files(f"{path}/{MANIFEST}", ".parquet")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(partial(_check_part, path, spec), parts)


def _check_part(path: str, spec: CacheSpec, part: str) -> Checked:
    try:
        table = read_parts([part], MANIFEST_SCHEMA)
    except UserError as error:
        return Checked(0, 0, [Finding(part, "", "", f"the manifest part is unreadable ({error.__cause__})")])
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
    """Yield (key, or "" for the whole tar; the problem)."""
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            members = {member.name: member for member in opened.getmembers()}
    except tarfile.TarError as error:
        yield "", f"the tar is unreadable ({one_line(error)})"
        return
    expected = set()
    for row in rows:
        key = row["key"]
        for suffix, (offset, length, crc) in arrays_of(row).items():
            expected.add(f"{key}.{suffix}")
            member = members.get(f"{key}.{suffix}")
            content = tar[offset : offset + length]
            if member is None or (member.offset_data, member.size) != (offset, length):
                where = "not in the tar" if member is None else f"at {member.offset_data}, {member.size} bytes"
                yield key, f"{suffix} is {where}; the index says at {offset}, {length} bytes"
            elif len(content) != length or checksum(content) != crc:
                yield key, f"{suffix} has another checksum than when it was written"
            elif suffix == LATENT_MEMBER and (problem := _misshapen(content, spec)):
                yield key, problem
        expected.add(f"{key}.{META_MEMBER}")
        meta = members.get(f"{key}.{META_MEMBER}")
        if meta is None:
            yield key, f"{META_MEMBER} is missing"
        elif _video_in(tar[meta.offset_data : meta.offset_data + meta.size]) != row["video"]:
            yield key, f"{META_MEMBER} does not describe this clip"
    if extra := members.keys() - expected:
        yield "", f"{len(extra)} members that the index does not know, for example {min(extra)}"


def _misshapen(content: bytes, spec: CacheSpec) -> str:
    latent = npy_array(content)
    wanted = (2, *spec.latent_shape)
    if latent.dtype != np.float16 or latent.shape != wanted:
        return f"the latent is {latent.dtype} {latent.shape}, not float16 {wanted}"
    return "" if np.isfinite(latent).all() else "the latent has infinite or undefined values"


def _video_in(meta: bytes) -> str | None:
    try:
        return json.loads(meta).get("video")
    except ValueError:
        return None


def check_source(made: pa.Table, plan: pa.Table) -> dict[str, pa.Table]:
    """Return {"gone": clips of the manifest `made` whose video the source has no more, "changed": in another size}."""
    columns = ["key", "video", "size"]
    videos = plan.select(["video", "size"]).group_by(["video"]).aggregate([("size", "max")])
    found = made.select(columns).join(videos, "video", join_type="left outer")
    gone = found.filter(pc.or_kleene(pc.is_null(found["size_max"]), pc.equal(found["size_max"], 0)))
    known = found.filter(pc.and_(pc.greater(found["size_max"], 0), pc.greater_equal(found["size"], 0)))
    changed = known.filter(pc.not_equal(known["size"], known["size_max"]))
    return {"gone": gone.sort_by("video"), "changed": changed.sort_by("video")}


def uncommit(path: str, findings: list[Finding]) -> int:
    """Remove the manifest parts of damaged shards; their tars become orphans. Returns the number of parts."""
    parts = sorted({finding.part for finding in findings})
    for part in parts:
        remove(part)
    return len(parts)


def find_orphans(path: str, older_than: float) -> tuple[list[Orphan], list[str]]:
    """Return (orphans last written at least `older_than` seconds ago; tars that manifest parts name and that are gone).

    Tars are listed before the parts are read: a tar that is committed in between is no orphan. Raises UserError if a
    part cannot be read.
    """
    latest = time.time() - older_than
    tars = [entry for entry in entries(f"{path}/{SHARDS}", hidden=True) if entry.address.endswith(".tar")]
    wanted = set(read_columns(path, {"shard": pa.string()})["shard"].unique().to_pylist())
    found = [entry for entry in tars if entry.relative not in wanted]
    uploads = unfinished_uploads(path) if is_s3(path) else ()
    for folder in () if is_s3(path) else (path, *(f"{path}/{name}" for name in (SHARDS, MANIFEST, REJECTS))):
        found += [entry for entry in entries(folder, hidden=True) if _unfinished(entry.relative)]
    orphans = [Orphan(entry.address, entry.size, entry.modified) for entry in found]
    orphans += [Orphan(address, 0, begun, upload) for address, upload, begun in uploads]
    gone = wanted - {entry.relative for entry in tars}
    return sorted(orphan for orphan in orphans if orphan.modified <= latest), sorted(gone)


def remove_orphans(orphans: list[Orphan]) -> None:
    """Delete the files, and abort the uploads."""
    for orphan in orphans:
        if orphan.upload is None:
            remove(orphan.address)
        else:
            abort_upload(orphan.address, orphan.upload)


def _unfinished(name: str) -> bool:
    """Whether storage.write_bytes has not renamed the file yet."""
    return name.startswith(".") and name.endswith(".tmp")
