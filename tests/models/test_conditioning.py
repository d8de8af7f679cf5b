"""Guidance by text and image: each scale turns its own condition up."""

import pytest
import torch
from torch import Tensor

from pipeline.models.conditioning import guided_by_text_and_image

Z, T = torch.zeros(2, 1, 1, 1, 1), torch.zeros(2)


class Counted:
    """Answer 100 text + 10 image + 1, and count samples."""

    samples = 0

    def __call__(self, z: Tensor, t: Tensor, text: Tensor, image: Tensor) -> Tensor:
        self.samples += len(z)
        return z + (100 * text + 10 * image + 1).view(-1, 1, 1, 1, 1)


def conditions(text: float, image: float) -> dict[str, Tensor]:
    return {"text": torch.full((2,), text), "image": torch.full((2,), image)}


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "expected", "evaluations"),
    [
        (1.0, 1.0, 111, 1),
        (7.5, 1.0, 761, 3),
        (1.0, 3.0, 131, 3),
        (7.5, 3.0, 781, 3),
        (7.5, 7.5, 826, 2),
        (0.0, 1.0, 11, 3),
    ],
)
def test_each_scale_guides_its_own_condition(
    text_scale: float, image_scale: float, expected: float, evaluations: int
) -> None:
    network = Counted()
    both, image, neither = conditions(1, 1), conditions(0, 1), conditions(0, 0)
    found = guided_by_text_and_image(network, both, image, neither, text_scale, image_scale)(Z, T)
    torch.testing.assert_close(found, torch.full_like(Z, expected))
    assert network.samples == 2 * evaluations
