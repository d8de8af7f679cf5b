import pytest

from pipeline.metrics.statistics import summarise, summarise_columns


def test_known_quartiles_and_unknown_values() -> None:
    assert summarise([4.0, None, 1.0, 2.0, 3.0, 5.0]) == {
        "n": 5, "median": 3.0, "mean": 3.0, "quartile1": 2.0, "quartile3": 4.0
    }  # fmt: skip
    assert summarise([None]) == {"n": 0}


def test_rows_without_a_column_do_not_count() -> None:
    columns = summarise_columns([{"a": 1.0}, {"a": 3.0, "b": 2.0}])
    assert columns["a"]["median"] == pytest.approx(2.0)
    assert columns["b"]["n"] == 1
