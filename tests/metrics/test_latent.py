import pytest
import torch

from pipeline.metrics.latent import latent_error
from pipeline.models.prior import replicate


def test_error_of_a_repeated_image_grows_with_the_frames_distance() -> None:
    true = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    repeated = replicate(true[None, 0], 4)[0]
    assert latent_error(repeated, true) == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert latent_error(true, true) == 0


def test_other_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="compared"):
        latent_error(torch.zeros(3, 2, 1, 1), torch.zeros(1, 2, 1, 1))
