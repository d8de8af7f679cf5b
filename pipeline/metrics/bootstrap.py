"""Confidence intervals of a number over clips: bootstrap over the clips (Efron 1979)."""

from collections.abc import Callable
from typing import TypedDict

import numpy as np


class Interval(TypedDict):
    """A statistic with its interval of `level`, and its bias: how much resampling raises it on average."""

    value: float
    low: float
    high: float
    bias: float
    level: float
    replicates: int


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, replicates: int, seed: int, level: float = 0.95
) -> Interval:
    """Interval of `statistic`, a function of clip indices, over `count` clips.

    Computes it of all clips, and of `replicates` draws of `count` clips with repetition. A Frechet distance or an
    inception score is biased in small sets, and more so in draws with repetition: plain percentiles would leave the
    value out. They are moved by that bias, which stands beside them.
    """
    if count < 2 or replicates < 2:
        raise ValueError(f"a bootstrap of {count} clips with {replicates} replicates: two or more of each are needed")
    random = np.random.default_rng(seed)
    value = statistic(np.arange(count))
    return interval(value, np.array([statistic(random.integers(count, size=count)) for _ in range(replicates)]), level)


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of a statistic from its bootstrap draws: their percentiles, moved by their bias."""
    bias = float(drawn.mean() - value)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) - bias
    return Interval(value=value, low=float(low), high=float(high), bias=bias, level=level, replicates=len(drawn))
