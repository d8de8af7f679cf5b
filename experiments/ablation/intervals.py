"""Frechet distances over seeds, and their differences, with bootstrap intervals of clips and seeds together."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics.bootstrap import Interval, interval
from pipeline.metrics.frechet import feature_moments, frechet_distance


class Cell(NamedTuple):
    """One row of a table: a configuration, measured with every seed on the same clips."""

    features: np.ndarray  # (seeds, clips, D)
    numbers: Mapping[str, np.ndarray]  # (seeds, clips), NaN where there is none

    def median(self, name: str) -> float:
        """Median over clips, averaged over seeds."""
        return float(np.nanmedian(self.numbers[name], axis=1).mean())

    def mean(self, name: str) -> float:
        """Mean over seeds and clips."""
        return float(np.nanmean(self.numbers[name]))


def cell(found: list[dict[str, Any]]) -> Cell:
    """Of measurements with the same settings, one a seed."""
    names = [
        name
        for name, value in found[0].items()
        if isinstance(value, list) and name not in ("features", "probabilities")
    ]
    numbers = {name: np.array([one[name] for one in found], dtype=float) for name in names}
    return Cell(np.array([one["features"] for one in found]), numbers)


class Draws(NamedTuple):
    """Which clips and which seeds each bootstrap draw takes: the same for all cells, so that differences are paired."""

    clips: np.ndarray  # (draws, clips)
    seeds: np.ndarray  # (draws, seeds)


def make_draws(count: int, clips: int, seeds: int) -> Draws:
    """`count` draws of clips and of seeds, always the same."""
    random = np.random.default_rng(0)
    return Draws(random.integers(clips, size=(count, clips)), random.integers(seeds, size=(count, seeds)))


class Drawn(NamedTuple):
    """A statistic of a cell: of each seed, and of each draw (the mean over the seeds that it takes)."""

    seeds: np.ndarray
    draws: np.ndarray

    def __sub__(self, other: "Drawn") -> "Drawn":
        return Drawn(self.seeds - other.seeds, self.draws - other.draws)

    def interval(self) -> Interval:
        """Mean over seeds, with the interval of the draws."""
        return interval(float(self.seeds.mean()), self.draws)


def frechet(one: Cell, true: np.ndarray, draws: Draws) -> Drawn:
    """Frechet distance to the true clips' features (clips, D), divisor N.

    A draw takes a generated clip together with its true one.
    """

    def distance(seed: int, clips: np.ndarray) -> float:
        return frechet_distance(feature_moments(one.features[seed, clips]), feature_moments(true[clips]), "N")

    seeds = range(len(one.features))
    whole = np.arange(len(true))
    each = np.array([[distance(seed, clips) for seed in seeds] for clips in draws.clips])
    return Drawn(np.array([distance(seed, whole) for seed in seeds]), means(each, draws))


def of_clips(one: Cell, name: str, draws: Draws, statistic: Callable[..., Any]) -> Drawn:
    """The statistic, np.nanmedian or np.nanmean, over clips of one of the cell's numbers."""
    values = one.numbers[name]
    each = np.stack([statistic(values[:, clips], axis=1) for clips in draws.clips])
    return Drawn(statistic(values, axis=1), means(each, draws))


def means(each: np.ndarray, draws: Draws) -> np.ndarray:
    """Of a statistic (draws, seeds), the mean over the seeds that each draw takes, (draws,)."""
    return np.take_along_axis(each, draws.seeds, axis=1).mean(1)


def verdict(difference: Interval) -> str:
    """Of a claim that the difference is below zero."""
    if difference["high"] < 0:
        return "reproduced"
    return "opposite" if difference["low"] > 0 else "not decided"
