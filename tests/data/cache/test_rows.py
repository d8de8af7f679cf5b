"""A manifest's rows are the same as a list of dictionaries would be, without being one."""

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.inspect import counts, statistics
from pipeline.data.cache.manifest import Cache, Rows, spread
from pipeline.data.cache.progress import tally


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tiny_settings(tmp_path_factory.mktemp("rows")))


def test_rows_are_those_of_the_table(cache: Cache) -> None:
    rows, listed = cache.rows, cache.table.to_pylist()
    assert len(rows) == 13 and list(rows) == listed
    assert [rows[index] for index in (0, 5, 12, -1)] == [listed[index] for index in (0, 5, 12, -1)]
    assert list(rows[3:9:2]) == listed[3:9:2]
    assert rows == Rows(cache.table) and rows != rows[:5]
    assert list(cache.select("test")) == [row for row in listed if row["split"] == "test"]
    assert not cache.select("none")
    with pytest.raises(IndexError):
        rows[13]


def test_a_spread_covers_all_rows_and_sorted_all_values_of_a_column(cache: Cache) -> None:
    keys = [row["key"] for row in cache.rows]
    assert [row["key"] for row in cache.rows.spread(4)] == [keys[index] for index in (0, 3, 6, 9)]
    assert cache.rows.spread(99) == cache.rows
    assert spread(1000, 4).to_pylist() == [0, 250, 500, 750] and spread(3, 4).to_pylist() == [0, 1, 2]
    chosen = list(cache.rows.spread(4, ["label", "key"]))
    assert [row["label"] for row in chosen] == ["bounce", "bounce", "bounce", "slide"]
    assert len(cache.rows.spread(99, ["label", "key"])) == 13


def test_rows_of_a_large_table_take_no_memory_until_asked_for(cache: Cache) -> None:
    large = pa.concat_tables([cache.table] * 20_000)
    tracemalloc.start()
    rows = Rows(large)
    assert sum(row["length"] for row in rows) == 20_000 * sum(row["length"] for row in cache.rows)
    assert rows[259_999] == cache.rows[12] and len(rows.spread(100)) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20, f"{peak / 2**20:.0f} MiB; as a list these rows are hundreds"


def test_tally_counts_the_most_frequent_first() -> None:
    assert list(tally(pa.chunked_array([["b", "a"], ["a", "c"]])).items()) == [("a", 2), ("b", 1), ("c", 1)]
    assert tally(pa.chunked_array([], pa.string())) == {}


def test_counts_and_statistics_describe_all_clips(cache: Cache, tmp_path: Path) -> None:
    found = counts(cache)
    assert (found["clips"], found["shards"], found["rejected"], found["rejects"]) == (13, 2, 0, {})
    assert found["classes"] == {"bounce": {"train": 5, "test": 2}, "slide": {"train": 5, "test": 1}}
    found = statistics(cache, 5)
    assert found["clips"] == 5 and all(len(found[name]) == 4 for name in ("mean", "std", "posterior_std"))
    scale = cache.spec.scaling_factor
    assert found["posterior_std"] == pytest.approx([scale * 0.0498] * 4, rel=1e-2), "log-variance -6 everywhere"
    assert all(2 < value / scale < 5 for value in found["std"]), "waves of height 5"
