"""Moments of latents: the same however the clips are split, and those of what training sees."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.moments import Moments, load_moments, merge, moments_of, read_moments, save_moments
from pipeline.data.cache.shards import read_latent
from pipeline.errors import UserError
from pipeline.schema import TRAIN

SCALE = 0.18215


def posteriors(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mean = 1e3 + random.normal(size=(count, 4, 4, 2, 2))  # far from zero: sums of squares would cancel
    return np.stack([mean, random.uniform(-4, 1, mean.shape)], 1)


def test_parts_merge_to_the_whole() -> None:
    clips = posteriors(23)
    whole = moments_of(clips, SCALE)
    parts = [moments_of(part, SCALE) for part in (clips[:1], clips[1:9], clips[9:])]
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = merge(merge(parts[order[0]], parts[order[1]]), parts[order[2]])
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        assert merged.clips == 23 and merged.variance == pytest.approx(whole.variance, rel=1e-9)


def test_moments_equal_numpys() -> None:
    """Over the clips for the means, and over samples of the posterior for the variance."""
    clips = posteriors(40)
    found = moments_of(clips, SCALE)
    np.testing.assert_allclose(found.mean, SCALE * clips[:, 0].mean(0), rtol=1e-12)
    exact = SCALE**2 * (clips[:, 0].var(0) + np.exp(clips[:, 1]).mean(0)).mean()
    assert found.variance == pytest.approx(exact, rel=1e-6)
    random = np.random.default_rng(1)
    samples = SCALE * (clips[:, 0] + np.exp(clips[:, 1] / 2) * random.normal(size=(500, *clips[:, 0].shape)))
    assert found.variance == pytest.approx(samples.reshape(-1, 4, 4, 2, 2).var(0).mean(), rel=0.02)


def test_moments_of_a_cache_come_back_from_their_files(tmp_path: Path) -> None:
    cache = write_cache(tiny_settings(tmp_path))
    rows = cache.select(TRAIN)
    found = read_moments(cache.path, rows, cache.spec.scaling_factor)
    exact = np.stack([read_latent(cache.path, row)[0].astype(np.float64) for row in rows]) * cache.spec.scaling_factor
    np.testing.assert_allclose(found.mean, exact.mean(0), atol=1e-6)
    save_moments(f"{tmp_path}/moments", found, "f")
    back = load_moments(f"{tmp_path}/moments", cache.spec.latent_shape)
    assert back.clips == len(rows) and back.variance == pytest.approx(found.variance)
    np.testing.assert_array_equal(back.mean, found.mean)
    with pytest.raises(UserError, match=r"moments of latents \[4, 4, 4, 4\]"):
        load_moments(f"{tmp_path}/moments", [16, 4, 4, 4])


def test_variance_of_one_certain_clip_is_zero() -> None:
    certain = np.stack([np.ones((1, 4, 4, 2, 2)), np.full((1, 4, 4, 2, 2), -30.0)], 1)
    assert isinstance(moments_of(certain, 1.0), Moments) and moments_of(certain, 1.0).variance < 1e-12
