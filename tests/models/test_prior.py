"""The bridge's prior: the replicated image and the neural prior."""

import pytest
import torch
from helpers.tiny_networks import LATTE

from pipeline.models.latte import Latte
from pipeline.models.prior import NeuralPrior, replicate


def test_replicated_image_is_every_frame() -> None:
    image = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = replicate(image, 3)
    assert prior.shape == (2, 3, 4, 4, 4)
    assert all(torch.equal(prior[:, frame], image) for frame in range(3))


def test_neural_prior_has_the_shape_of_a_clip() -> None:
    prior = NeuralPrior(Latte(**LATTE, time_embedding=False))
    assert prior(torch.ones(2, 4, 4, 4), torch.tensor([0, 5])).shape == (2, 3, 4, 4, 4)


def test_prior_with_a_time_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="time_embedding=False"):
        NeuralPrior(Latte(**LATTE))
