"""A bridge whose data is Gaussian, z0 ~ N(MEAN, DEVIATION^2) whatever the prior: everything about it in closed form."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.bridge.samplers import Clean
from pipeline.bridge.schedule import BridgeTable

MEAN, DEVIATION, PRIOR = 0.5, 0.8, 2.0


def best_clean(table: BridgeTable) -> Clean:
    """E[z0 | z_t, z_T]; the gain is a d^2/(a^2 d^2 + c^2), with c^2 = (sigma^2/alpha) a put in: it holds at T too."""

    def clean(z: Tensor, s: Tensor) -> Tensor:
        alpha, sigma, a, b = (float(column[s]) for column in (table.alpha, table.sigma, table.a, table.b))
        gain = DEVIATION**2 / (a * DEVIATION**2 + sigma**2 / alpha)
        return MEAN + gain * (z - a * MEAN - b * PRIOR)

    return clean


def moments(table: BridgeTable, index: int) -> tuple[float, float]:
    """Exact mean and variance of z_t."""
    a, b, c = (float(column[index]) for column in (table.a, table.b, table.c))
    return a * MEAN + b * PRIOR, a**2 * DEVIATION**2 + c**2


def flow(table: BridgeTable, z: Tensor, start: int, end: int) -> Tensor:
    """Where the probability-flow ODE takes z from `start` to `end`: it keeps standardised values."""
    (mean_s, variance_s), (mean_t, variance_t) = moments(table, start), moments(table, end)
    return mean_t + math.sqrt(variance_t / variance_s) * (z - mean_s)


def watched(clean: Clean, latents: list[Tensor]) -> Clean:
    """The same estimate, noting each latent that a sampler judges."""

    def watch(z: Tensor, s: Tensor) -> Tensor:
        latents.append(z)
        return clean(z, s)

    return watch


def impulse_moments(sample: Callable[[Tensor, Callable[[int], Tensor]], Tensor], steps: int) -> tuple[float, float]:
    """Exact mean and variance of an affine sampler's result, without Monte Carlo.

    sample(prior, noise) runs the batch: row 0 without noise, row j with a unit impulse at step j - 1.
    """
    rows = torch.eye(steps + 1, dtype=torch.float64)[:, 1:]
    prior = torch.full((steps + 1, 1, 1, 1, 1), PRIOR, dtype=torch.float64)
    out = sample(prior, lambda k: rows[:, k].reshape(-1, 1, 1, 1, 1)).flatten()
    return float(out[0]), float((out[1:] - out[0]).square().sum())


def order(errors: list[float], steps: list[int]) -> float:
    """Slope of log(error) against log(1/steps), by least squares."""
    x, y = torch.tensor(steps, dtype=torch.float64).log(), torch.tensor(errors, dtype=torch.float64).log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
