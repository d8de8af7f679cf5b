"""The bridge's end points."""

from typing import Any

import pytest
import torch

from pipeline.models.latte import Latte
from pipeline.models.prior import NeuralPrior, replicate

SMALL: dict[str, Any] = dict(
    input_size=4,
    patch_size=2,
    in_channels=4,
    hidden_size=16,
    depth=2,
    num_heads=2,
    num_frames=3,
    num_classes=5,
)


def test_replicated_image_is_not_every_frame() -> None:
    image = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = replicate(image, 3)
    assert prior.shape == (2, 3, 4, 4, 4)
    assert all(torch.equal(prior[:, frame], image) for frame in range(3))


def test_neural_prior_is_not_a_clip() -> None:
    prior = NeuralPrior(Latte(**SMALL, time_embedding=False))
    assert prior(torch.ones(2, 4, 4, 4), torch.tensor([0, 5])).shape == (2, 3, 4, 4, 4)


def test_prior_with_a_time_embedding_is_accepted() -> None:
    with pytest.raises(ValueError, match="time_embedding=False"):
        NeuralPrior(Latte(**SMALL))
