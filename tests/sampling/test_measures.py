"""Numbers of clips whose values are known."""

import numpy as np
import pytest
import torch

from pipeline.models.prior import replicate
from pipeline.sampling.measures import (
    CEILING_DB,
    frame_difference,
    latent_error,
    motion_ratio,
    psnr,
    summarise,
    summarise_columns,
)


def test_psnr_of_known_errors() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr(black, black + np.uint8(51)) == pytest.approx(20 * np.log10(5))  # 255 / 51
    half = black.copy()
    half[:4] = 10  # mean squared error 50
    assert psnr(half, black) == pytest.approx(10 * np.log10(255**2 / 50))


def test_psnr_of_equal_pictures_is_finite() -> None:
    picture = np.full((4, 4, 3), 7, np.uint8)
    assert psnr(picture, picture) == CEILING_DB


def test_differences_do_not_wrap_around() -> None:
    low, high = np.full((2, 2, 3), 1, np.uint8), np.full((2, 2, 3), 254, np.uint8)
    assert psnr(low, high) == psnr(high, low) == pytest.approx(20 * np.log10(255 / 253))


def test_psnr_refuses_another_shape_or_type() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        psnr(picture, picture[:2])
    with pytest.raises(ValueError, match="float32"):
        psnr(picture.astype(np.float32), picture)


def test_still_clip_does_not_move() -> None:
    assert frame_difference(np.full((5, 4, 4, 3), 9, np.uint8)) == 0


def test_steady_brightening_is_its_step() -> None:
    clip = np.arange(6, dtype=np.uint8)[:, None, None, None] * 7 + np.zeros((1, 4, 4, 3), np.uint8)
    assert frame_difference(clip) == 7
    assert frame_difference(clip[::-1]) == 7  # darkening does not wrap around


def test_square_that_moves_one_pixel_changes_two_columns() -> None:
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    clip[0, 2:6, 1:4] = 100
    clip[1, 2:6, 2:5] = 100
    assert frame_difference(clip) == pytest.approx(100 * 2 * 4 / 64)


def test_ratio_to_a_still_clip_is_none() -> None:
    assert motion_ratio(3.0, 2.0) == 1.5
    assert motion_ratio(3.0, 0.0) is None


def test_motion_needs_two_frames() -> None:
    with pytest.raises(ValueError, match="two frames"):
        frame_difference(np.zeros((1, 4, 4, 3), np.uint8))


def test_error_of_a_repeated_image_grows_with_the_frames_distance() -> None:
    true = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    repeated = replicate(true[None, 0], 4)[0]
    assert latent_error(repeated, true) == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert latent_error(true, true) == 0


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="compared"):
        latent_error(torch.zeros(3, 2, 1, 1), torch.zeros(1, 2, 1, 1))


def test_known_quartiles_and_unknown_values() -> None:
    assert summarise([4.0, None, 1.0, 2.0, 3.0, 5.0]) == {
        "n": 5, "median": 3.0, "mean": 3.0, "quartile1": 2.0, "quartile3": 4.0
    }  # fmt: skip
    assert summarise([None]) == {"n": 0}


def test_rows_without_a_column_do_not_count() -> None:
    columns = summarise_columns([{"a": 1.0}, {"a": 3.0, "b": 2.0}])
    assert columns["a"]["median"] == pytest.approx(2.0)
    assert columns["b"]["n"] == 1
