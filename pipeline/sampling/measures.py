"""Numbers of one clip that sampling writes into its record, and their summary over the clips.

psnr                            likeness of two pictures
frame_difference, motion_ratio  motion of a clip; clips compare only where they show the same scene, since the
                                difference of frames sees texture and lighting as well as displacement
latent_error                    distance of a latent from that of the true clip
summarise                       statistics of each number over the clips, for summary.json
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

CEILING_DB = 100.0  # of equal pictures: finite, so that means and JSON files stay finite


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """Return 10 log10(255^2 / mean squared error) in dB, CEILING_DB at most, of uint8 arrays of one shape."""
    if picture.shape != reference.shape or picture.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"psnr compares uint8 arrays of one shape, not {picture.dtype} {picture.shape} and "
            f"{reference.dtype} {reference.shape}"
        )
    error = float(np.mean(np.square(picture.astype(np.float64) - reference.astype(np.float64))))
    return CEILING_DB if error == 0 else min(CEILING_DB, 10 * math.log10(255.0**2 / error))


STILL = 0.05  # grey levels; below it a clip is still, and a ratio to it means nothing


def frame_difference(frames: np.ndarray) -> float:
    """Return the mean difference of neighbouring frames uint8 (F, H, W, 3), in grey levels 0..255."""
    if frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"motion needs (F, H, W, 3) with two frames or more, not {frames.shape}")
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def motion_ratio(generated: float, true: float) -> float | None:
    """Divide two frame differences of the same scene; None where the true clip is still."""
    return None if true < STILL else generated / true


def latent_error(latents: Tensor, true: Tensor) -> float:
    """Mean squared error over all frames of scaled latents (F, C, h, w)."""
    if latents.shape != true.shape:
        raise ValueError(f"latents of {tuple(latents.shape)} compared with {tuple(true.shape)}")
    return float((latents.double() - true.double()).square().mean())


def summarise(values: Iterable[float | None]) -> dict[str, float | int]:
    """Return n, median, mean and quartiles of the values that are not None; without any, n alone."""
    known = [value for value in values if value is not None]
    if not known:
        return {"n": 0}
    first, median, third = np.percentile(known, [25, 50, 75]).tolist()
    return {"n": len(known), "median": median, "mean": float(np.mean(known)), "quartile1": first, "quartile3": third}


def summarise_columns(rows: Iterable[Mapping[str, float | None]]) -> dict[str, dict[str, float | int]]:
    """`summarise` of every name that occurs in the rows."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: summarise(row.get(name) for row in rows) for name in names}
