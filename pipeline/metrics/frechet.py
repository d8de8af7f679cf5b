"""Frechet distance between two sets of features (Dowson and Landau 1982).

FID: Heusel et al. 2017; FVD: Unterthiner et al. 2018. Features are summed up in moments that merge: a set of any size
is read once, in any order, by any number of workers.
"""

from typing import Literal, NamedTuple

import numpy as np

Divisor = Literal["N", "N-1"]


class FeatureMoments(NamedTuple):
    """Number, mean (D,) and scatter (D, D) = sum of (x - mean)(x - mean)^T of features, in float64."""

    number: int
    mean: np.ndarray
    scatter: np.ndarray

    def covariance(self, divisor: Divisor) -> np.ndarray:
        """The covariance (D, D); published protocols differ in the divisor. Raises ValueError below two features."""
        if self.number < 2:
            raise ValueError(f"a covariance needs two features or more, not {self.number}")
        return self.scatter / (self.number if divisor == "N" else self.number - 1)


def feature_moments(features: np.ndarray) -> FeatureMoments:
    """Sum up features (N, D), N >= 1. Raises ValueError for another shape and for values that are not finite."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features are (N, D) with N >= 1, not {features.shape}")
    x = features.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features are not finite; look at the clips, or at the weights, that they come from")
    mean = x.mean(0)
    centred = x - mean
    return FeatureMoments(len(x), mean, centred.T @ centred)


def merge_moments(one: FeatureMoments, other: FeatureMoments) -> FeatureMoments:
    """Return the moments of both sets together (Chan, Golub and LeVeque 1979)."""
    number = one.number + other.number
    shift = other.mean - one.mean
    scatter = one.scatter + other.scatter + np.outer(shift, shift) * (one.number * other.number / number)
    return FeatureMoments(number, one.mean + shift * (other.number / number), scatter)


def frechet_distance(one: FeatureMoments, other: FeatureMoments, divisor: Divisor) -> float:
    """d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2).

    The products are symmetric and positive, so symmetric eigendecompositions give the roots. scipy's general matrix
    root gives complex numbers for fewer features than dimensions. At least 0.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features of {len(one.mean)} and {len(other.mean)} dimensions do not compare")
    first, second = one.covariance(divisor), other.covariance(divisor)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ second @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
    squared = np.square(one.mean - other.mean).sum() + np.trace(first) + np.trace(second) - 2 * overlap
    return max(0.0, float(squared))
