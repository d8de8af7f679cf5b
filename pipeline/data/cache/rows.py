"""The rows of a manifest, made when they are asked for: millions of them as dictionaries would fill a machine's memory."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from ...schema import ManifestRow

AT_ONCE = 1024  # rows that are dictionaries at the same time, when all are gone through


class Rows(Sequence[ManifestRow]):
    """A MANIFEST_SCHEMA table as a sequence of its rows."""

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
        row: Any = self.table.slice(index % len(self), 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[ManifestRow]:
        for batch in self.table.to_batches(max_chunksize=AT_ONCE):
            yield from batch.to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.table.equals(other.table)

    def spread(self, count: int) -> "Rows":
        """`count` rows, evenly over all; all if there are no more."""
        rows = len(self)
        return Rows(self.table.take([index * rows // count for index in range(count)])) if rows > count else self

    def spread_by(self, columns: list[str], count: int) -> "Rows":
        """As `spread`, over the rows sorted by `columns`."""
        order = pc.sort_indices(self.table.select(columns), [(column, "ascending") for column in columns])
        rows = min(count, len(self))
        return Rows(self.table.take(order.take(pa.array([index * len(self) // rows for index in range(rows)]))))
