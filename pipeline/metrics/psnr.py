"""Peak signal-to-noise ratio: how near two pictures are, pixel by pixel."""

import math

import numpy as np

CEILING_DB = 100.0  # of equal pictures: finite, so that means and JSON files stay finite


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """10 log10(255^2 / mean squared error) in dB of uint8 arrays of one shape; CEILING_DB at most."""
    if picture.shape != reference.shape or picture.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"psnr compares uint8 arrays of one shape, not {picture.dtype} {picture.shape} and "
            f"{reference.dtype} {reference.shape}"
        )
    error = float(np.mean(np.square(picture.astype(np.float64) - reference.astype(np.float64))))
    return CEILING_DB if error == 0 else min(CEILING_DB, 10 * math.log10(255.0**2 / error))
