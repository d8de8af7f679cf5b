"""Frechet distances equal those of closed forms and of an independent computation."""

import numpy as np
import pytest

from pipeline.metrics.frechet import FeatureMoments, feature_moments, frechet_distance, merge_moments


@pytest.fixture
def features() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(200, 12)) @ random.normal(size=(12, 12)) + 100


def by_general_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """The same distance another way: tr (C1 C2)^(1/2) of the eigenvalues of the product, which is not symmetric."""
    c1, c2 = np.cov(a.T), np.cov(b.T)
    overlap = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1) + np.trace(c2) - 2 * overlap)


def test_moments_are_those_of_numpy_for_both_divisors(features: np.ndarray) -> None:
    moments = feature_moments(features)
    np.testing.assert_allclose(moments.mean, features.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance("N-1"), np.cov(features.T), rtol=1e-10)
    np.testing.assert_allclose(moments.covariance("N"), np.cov(features.T, bias=True), rtol=1e-10)


def test_parts_merge_to_the_whole_in_any_order(features: np.ndarray) -> None:
    whole = feature_moments(features)
    order = np.random.default_rng(1).permutation(len(features))
    parts = [feature_moments(part) for part in np.split(features[order], [1, 30, 177])]
    merged = parts[2]
    for index in (0, 3, 1):
        merged = merge_moments(merged, parts[index])
    assert merged.number == whole.number
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-9)


def test_float32_features_far_from_zero_keep_their_covariance() -> None:
    features = (np.random.default_rng(2).integers(0, 8, size=(500, 3)) + 2**20).astype(np.float32)
    np.testing.assert_allclose(feature_moments(features).covariance("N-1"), np.cov(features.astype(float).T), rtol=1e-9)


def test_identical_sets_are_at_distance_zero(features: np.ndarray) -> None:
    moments = feature_moments(features)
    shuffled = feature_moments(np.random.default_rng(3).permutation(features))
    assert frechet_distance(moments, shuffled, "N") == pytest.approx(0, abs=1e-8)


def test_shifted_set_is_at_the_squared_shift(features: np.ndarray) -> None:
    shift = np.arange(12) / 4
    moved = frechet_distance(feature_moments(features), feature_moments(features + shift), "N-1")
    assert moved == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_gaussians_with_one_set_of_axes_have_a_closed_form() -> None:
    # with common axes: sum of (m1 - m2)^2 + (s1 - s2)^2
    s1, s2, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5]), np.array([0.0, 1.0, -2.0])
    axes = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    count = 10
    one, other = (
        FeatureMoments(count, axes @ mean, axes @ np.diag(count * s**2) @ axes.T)
        for mean, s in ((0 * shift, s1), (shift, s2))
    )
    expected = np.square(shift).sum() + np.square(s1 - s2).sum()
    assert frechet_distance(one, other, "N") == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(other, one, "N") == pytest.approx(expected, rel=1e-10)


def test_distance_agrees_with_an_independent_computation(features: np.ndarray) -> None:
    other = np.random.default_rng(5).gamma(2.0, size=(150, 12)) + 99
    found = frechet_distance(feature_moments(features), feature_moments(other), "N-1")
    assert found == pytest.approx(by_general_eigenvalues(features, other), rel=1e-6)
    assert found != pytest.approx(frechet_distance(feature_moments(features), feature_moments(other), "N"), rel=1e-6)


def test_fewer_features_than_dimensions_give_a_real_number(features: np.ndarray) -> None:
    few = feature_moments(features[:5])
    assert frechet_distance(few, few, "N") == pytest.approx(0, abs=1e-4)
    assert frechet_distance(few, feature_moments(features[5:9] + 3), "N") > 1


def test_features_of_a_wrong_shape_or_number_are_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="N, D"):
        feature_moments(features[0])
    with pytest.raises(ValueError, match="finite"):
        feature_moments(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="two features"):
        feature_moments(features[:1]).covariance("N")
    with pytest.raises(ValueError, match="12 and 3"):
        frechet_distance(feature_moments(features), feature_moments(features[:, :3]), "N")
