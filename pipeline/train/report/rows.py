"""Rows of history.csv, read back."""

import csv
import io

from ...storage.files import read_bytes

Row = dict[str, float | None]
Series = list[tuple[float, float]]  # (step, value)


def read_history(address: str) -> list[Row]:
    """Rows of a history.csv; [] if there is none. Empty cells are None."""
    try:
        text = read_bytes(address).decode()
    except FileNotFoundError:
        return []
    return [
        {name: float(value) if value else None for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(text))
    ]


def column(rows: list[Row], name: str) -> Series:
    """The values of one column of a history, where it has any."""
    pairs = ((row.get("step"), row.get(name)) for row in rows)
    return [(step, value) for step, value in pairs if step is not None and value is not None]
