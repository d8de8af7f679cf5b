"""Differences between cells, on sets whose distances are known."""

import numpy as np
import pytest

from experiments.ablation.intervals import cell, frechet, make_draws, of_clips, verdict
from pipeline.metrics.bootstrap import Interval

TRUE = np.random.default_rng(0).normal(size=(40, 3))
DRAWS = make_draws(100, clips=40, seeds=3)


def shifted(*by: float) -> list[dict[str, object]]:
    """A measurement a seed, whose features are the true ones moved by so much."""
    return [{"features": (TRUE + shift).tolist(), "motion_ratio": [shift + i for i in range(40)]} for shift in by]


def test_distance_of_shifted_clips_is_the_squared_shift_in_every_draw() -> None:
    found = frechet(cell(shifted(1.0, 1.0, 1.0)), TRUE, DRAWS)
    np.testing.assert_allclose(found.seeds, 3.0)
    np.testing.assert_allclose(found.draws, 3.0, rtol=1e-9)


def test_seeds_are_drawn_as_well_as_clips() -> None:
    found = frechet(cell(shifted(0.0, 0.0, 1.0)), TRUE, DRAWS).interval()
    assert found["value"] == pytest.approx(1.0)
    assert set(np.round(frechet(cell(shifted(0.0, 0.0, 1.0)), TRUE, DRAWS).draws, 6)) == {0.0, 1.0, 2.0, 3.0}


def test_differences_are_paired() -> None:
    near, far = (frechet(cell(shifted(*by)), TRUE, DRAWS) for by in ((0.0, 1.0, 2.0), (0.1, 1.1, 2.1)))
    difference = (near - far).interval()
    assert difference["high"] < 0 < far.interval()["high"] - far.interval()["low"]
    assert difference["high"] - difference["low"] < (far.interval()["high"] - far.interval()["low"]) / 5
    assert verdict(difference) == "reproduced" and verdict((far - near).interval()) == "opposite"


def test_median_is_of_the_clips_that_have_a_number() -> None:
    measured = shifted(0.0, 0.0, 0.0)
    for one in measured:
        one["motion_ratio"] = [None, *range(1, 40)]
    assert of_clips(cell(measured), "motion_ratio", DRAWS, np.nanmedian).seeds.tolist() == [20.0] * 3


def test_an_interval_that_holds_zero_decides_nothing() -> None:
    assert verdict(Interval(value=-1.0, low=-3.0, high=0.5, bias=0.0, level=0.95, replicates=9)) == "not decided"
