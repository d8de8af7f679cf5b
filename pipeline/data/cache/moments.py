"""Moments of the latents over a cache, streaming: E[z0] and tr(Cov[z0])/d, which CIL's Analytic-Init starts from.

Moments of parts merge to the moments of all clips (Chan et al. 1983), without the cancellation of sums of squares. z0
is the sample of the posterior that training sees, so the posterior's own variance is added to the spread of the
posteriors' means (law of total variance).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ...schema import ManifestRow
from ...storage.files import exists, read_bytes, read_json, write_bytes, write_json
from .shards import npy_array, npy_bytes, read_latent

MOMENTS, MEAN = "moments.json", "mean.npy"


class Moments(NamedTuple):
    """The mean of some clips, and the sum of their squared distances from it, posterior variance included."""

    clips: int
    mean: np.ndarray  # (F, C, h, w) float64, scaled latents
    squares: float

    @property
    def variance(self) -> float:
        """tr(Cov[z0]) / d, d = F C h w."""
        return self.squares / (self.clips * self.mean.size)


def moments_of(posteriors: np.ndarray, scaling_factor: float) -> Moments:
    """Moments of a few clips, from (N, 2, F, C, h, w) unscaled posterior means and log-variances."""
    means, logvars = np.moveaxis(posteriors.astype(np.float64), 1, 0)
    mean = means.mean(0)
    squares = np.square(means - mean).sum() + np.exp(np.clip(logvars, -30, 20)).sum()
    return Moments(len(means), mean * scaling_factor, float(squares) * scaling_factor**2)


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of the clips of both."""
    count = one.clips + other.clips
    step = other.mean - one.mean
    squares = one.squares + other.squares + float(np.square(step).sum()) * one.clips * other.clips / count
    return Moments(count, one.mean + step * (other.clips / count), squares)


def read_moments(cache_path: str, rows: Iterable[ManifestRow], scaling_factor: float) -> Moments:
    """Moments of the clips of these manifest rows, all in memory at once. Raises CorruptShard."""
    return moments_of(np.stack([read_latent(cache_path, row) for row in rows]), scaling_factor)


def save_moments(folder: str, moments: Moments, fingerprint: str) -> None:
    """Write FOLDER/mean.npy, then moments.json, which makes them count."""
    write_bytes(f"{folder}/{MEAN}", npy_bytes(moments.mean))
    described = {"clips": moments.clips, "variance": moments.variance, "latent_shape": list(moments.mean.shape)}
    write_json(f"{folder}/{MOMENTS}", described | {"cache_fingerprint": fingerprint})


def load_moments(folder: str, latent_shape: Sequence[int]) -> Moments:
    """Read what `save_moments` wrote. Raises UserError if there is nothing, or moments of another latent shape."""
    if not exists(f"{folder}/{MOMENTS}"):
        raise UserError(f"sample.analytic_init = {folder}: no {MOMENTS}; jobs/latent_moments.py makes RUN/moments")
    found = read_json(f"{folder}/{MOMENTS}")
    if found["latent_shape"] != list(latent_shape):
        raise UserError(
            f"sample.analytic_init = {folder}: moments of latents {found['latent_shape']}, but the model's are "
            f"{list(latent_shape)}; run jobs/latent_moments.py on the cache that it was trained from"
        )
    mean = npy_array(read_bytes(f"{folder}/{MEAN}"))
    return Moments(found["clips"], mean, found["variance"] * found["clips"] * mean.size)
