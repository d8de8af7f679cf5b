"""PLAN + CACHE -> PROGRESS: each planned clip is cached, rejected or pending. In Arrow: there may be millions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ...schema import IDENTITY, MANIFEST_SCHEMA
from ..plan.clips import distinct
from .manifest import identities, read_columns, read_rejected

NAME = pa.dictionary(pa.int32(), pa.string())  # dictionary-encoded: few distinct values
COMMITTED = {name: MANIFEST_SCHEMA.field(name).type for name in [*IDENTITY, "length"]}
COMMITTED |= {"shard": NAME, "decoder": NAME}


class CacheProgress(NamedTuple):
    """The clips of a plan; each is in exactly one of the first three tables, in the plan's order."""

    cached: pa.Table  # their "split"
    rejected: pa.Table  # the plan's columns and "reason"
    pending: pa.Table  # the plan's columns
    committed: pa.Table  # "shard", "length" and "decoder" of every clip in the cache, planned or not

    @property
    def planned(self) -> int:
        """Clips of the plan."""
        return self.cached.num_rows + self.rejected.num_rows + self.pending.num_rows


def cache_progress(plan: pa.Table, path: str) -> CacheProgress:
    """Match the plan with the committed manifest and rejected clips of the cache at `path`, on IDENTITY."""
    wanted = identities(plan)
    committed = read_columns(path, COMMITTED)
    names = identities(committed)
    committed = distinct(committed.drop_columns(IDENTITY), names)  # a task that Ray ran again commits some twice
    made = pc.is_in(wanted, value_set=names)
    earlier = read_rejected(path).select([*IDENTITY, "reason"])
    place = pc.index_in(wanted, value_set=identities(earlier))
    rejected = pc.and_not(pc.is_valid(place), made)
    known = pc.or_(made, rejected)
    return CacheProgress(
        cached=plan.select(["split"]).filter(made),
        rejected=plan.filter(rejected).append_column("reason", earlier["reason"].take(place.filter(rejected))),
        pending=plan.filter(pc.invert(known)) if pc.any(known).as_py() else plan,
        committed=committed,
    )


def counts_of(path: str, progress: CacheProgress) -> dict[str, Any]:
    """The counts of the cache at `path` that summary.json holds."""
    return {
        "cache": path,
        "planned": progress.planned,
        "cached": progress.cached.num_rows,
        "rejected": progress.rejected.num_rows,
        "rejects": tally(progress.rejected["reason"]),
        "splits": tally(progress.cached["split"]),
        "decoders": tally(progress.committed["decoder"]),
        "shards": len(progress.committed["shard"].unique()),
        "bytes": pc.sum(progress.committed["length"]).as_py() or 0,
    }


def tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the most frequent value first."""
    counts = ((each["values"], each["counts"]) for each in column.value_counts().to_pylist())
    return dict(sorted(counts, key=lambda each: -each[1]))


def describe_counts(counts: Mapping[str, int]) -> str:
    """Put counts into words: "2 timeout, 1 crashed"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
