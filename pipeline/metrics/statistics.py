"""Many numbers in few, for summary.json: those that are known, and how many they are."""

from collections.abc import Iterable, Mapping

import numpy as np


def summarise(values: Iterable[float | None]) -> dict[str, float | int]:
    """n, median, mean and quartiles of the values that are not None; only n where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return {"n": 0}
    first, median, third = np.percentile(known, [25, 50, 75]).tolist()
    return {"n": len(known), "median": median, "mean": float(np.mean(known)), "quartile1": first, "quartile3": third}


def summarise_columns(rows: Iterable[Mapping[str, float | None]]) -> dict[str, dict[str, float | int]]:
    """`summarise` of every name that occurs in the rows."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: summarise(row.get(name) for row in rows) for name in names}
