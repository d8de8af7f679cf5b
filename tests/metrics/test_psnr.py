import numpy as np
import pytest

from pipeline.metrics.psnr import CEILING_DB, psnr


def test_known_errors() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0)
    assert psnr(black, black + np.uint8(51)) == pytest.approx(20 * np.log10(5))  # 255 / 51
    half = black.copy()
    half[:4] = 10  # mean squared error 50
    assert psnr(half, black) == pytest.approx(10 * np.log10(255**2 / 50))


def test_equal_pictures_stay_finite() -> None:
    picture = np.full((4, 4, 3), 7, np.uint8)
    assert psnr(picture, picture) == CEILING_DB


def test_differences_do_not_wrap_around() -> None:
    low, high = np.full((2, 2, 3), 1, np.uint8), np.full((2, 2, 3), 254, np.uint8)
    assert psnr(low, high) == psnr(high, low) == pytest.approx(20 * np.log10(255 / 253))


def test_other_shape_or_type_is_refused() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="one shape"):
        psnr(picture, picture[:2])
    with pytest.raises(ValueError, match="float32"):
        psnr(picture.astype(np.float32), picture)
