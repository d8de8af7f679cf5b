"""Intervals of numbers over clips."""

import numpy as np
import pytest

from pipeline.metrics.bootstrap import bootstrap
from pipeline.metrics.frechet import feature_moments, frechet_distance


def test_interval_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    found = bootstrap(lambda index: float(values[index].mean()), 400, 2000, seed=1)
    half = 1.96 * values.std() / 20
    assert found["value"] == values.mean()
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)
    assert abs(found["bias"]) < half / 10


def test_distance_lies_within_its_interval_and_its_bias_is_given() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(2, 40, 6))
    moments = feature_moments(other)
    found = bootstrap(lambda index: frechet_distance(feature_moments(one[index]), moments, "N"), 40, 300, seed=0)
    assert found["low"] < found["value"] < found["high"]
    assert found["bias"] > 0


def test_same_seed_gives_the_same_interval() -> None:
    values = np.arange(30.0)
    intervals = [bootstrap(lambda index: float(np.median(values[index])), 30, 50, seed) for seed in (3, 3, 4)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_interval_needs_two_clips() -> None:
    with pytest.raises(ValueError, match="1 clips"):
        bootstrap(lambda index: 0.0, 1, 10, seed=0)
