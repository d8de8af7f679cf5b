"""PLAN + CACHE -> WHAT IS LEFT: each planned clip is cached, rejected or pending. In Arrow: there may be millions."""

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.manifest import first_of_each, read_columns, read_rejects
from pipeline.schema import IDENTITY


class Standing(NamedTuple):
    """Where the clips of a plan stand; each is in exactly one of these tables, in the plan's order."""

    cached: pa.Table  # their "split"
    rejected: pa.Table  # the plan's columns and "reason"
    pending: pa.Table  # the plan's columns

    @property
    def planned(self) -> int:
        return self.cached.num_rows + self.rejected.num_rows + self.pending.num_rows


def standing_of(plan: pa.Table, path: str) -> Standing:
    """Match the plan with the committed manifest and rejects of the cache at `path`, on IDENTITY."""
    wanted = _identity(plan)
    made = pc.is_in(wanted, value_set=_identity(read_columns(path, IDENTITY)))
    rejects = read_rejects(path).select([*IDENTITY, "reason"])
    place = pc.index_in(wanted, value_set=_identity(rejects))
    rejected = pc.and_not(pc.is_valid(place), made)
    known = pc.or_(made, rejected)
    return Standing(
        cached=plan.select(["split"]).filter(made),
        rejected=plan.filter(rejected).append_column("reason", rejects["reason"].take(place.filter(rejected))),
        pending=plan.filter(pc.invert(known)) if pc.any(known).as_py() else plan,
    )


def _identity(table: pa.Table) -> pa.ChunkedArray:
    """IDENTITY of each row as one string."""
    assert IDENTITY == ["video", "size", "ordinal", "flip"]
    numbers = (table["size"], table["ordinal"], table["flip"].cast(pa.int8()))
    return pc.binary_join_element_wise(table["video"], *(number.cast(pa.string()) for number in numbers), "\0")


def counts_of(path: str, standing: Standing) -> dict[str, Any]:
    """What summary.json says of the cache at `path` as it stands."""
    made = read_columns(path, ["key", "shard", "length", "decoder"])
    if pc.count_distinct(made["key"]).as_py() < made.num_rows:  # a task that Ray ran again committed some twice
        made = first_of_each(made.sort_by([("key", "ascending"), ("shard", "ascending")]), ["key"])
    return {
        "cache": path,
        "planned": standing.planned,
        "cached": standing.cached.num_rows,
        "rejected": standing.rejected.num_rows,
        "rejects": tally(standing.rejected["reason"]),
        "splits": tally(standing.cached["split"]),
        "decoders": tally(made["decoder"]),
        "shards": pc.count_distinct(made["shard"]).as_py(),
        "bytes": pc.sum(made["length"]).as_py() or 0,
    }


def tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    counts = ((each["values"], each["counts"]) for each in column.value_counts().to_pylist())
    return dict(sorted(counts, key=lambda each: -each[1]))
