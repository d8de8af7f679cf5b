"""Inception scores equal those of closed forms."""

import numpy as np
import pytest

from pipeline.metrics.inception import inception_score


def test_score_of_sure_and_balanced_clips_is_the_number_of_classes() -> None:
    assert inception_score(np.eye(8)[np.arange(24) % 8]) == (pytest.approx(8), 0)


def test_score_of_one_class_or_of_unrecognised_clips_is_one() -> None:
    assert inception_score(np.eye(5)[np.zeros(10, int)])[0] == pytest.approx(1)
    assert inception_score(np.full((10, 5), 0.2))[0] == pytest.approx(1)


def test_score_of_unsure_clips_has_its_closed_form() -> None:
    # rows (q, 1-q) and (1-q, q): the marginal is even, so that log IS = log 2 - H(q)
    q = 0.9
    entropy = -q * np.log(q) - (1 - q) * np.log(1 - q)
    score, _ = inception_score(np.array([[q, 1 - q], [1 - q, q]] * 6))
    assert score == pytest.approx(2 * np.exp(-entropy))


def test_splits_are_scored_apart() -> None:
    probabilities = np.eye(2)[[0] * 4 + [0, 1] * 2]  # the first half shows one class, the second one both
    assert inception_score(probabilities, splits=2) == (pytest.approx(1.5), pytest.approx(0.5))
    assert inception_score(probabilities)[1] == 0


def test_rows_must_be_probabilities() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.ones((4, 3)))
    with pytest.raises(ValueError, match="5 splits"):
        inception_score(np.eye(4), splits=5)
