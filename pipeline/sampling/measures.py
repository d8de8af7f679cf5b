"""Numbers of one clip that sampling writes into its record, and their summary over the clips.

psnr                            how near two pictures are
frame_difference, motion_ratio  how much a clip moves; two clips are compared only where they show the same scene, since
                                the difference of frames sees texture and lighting as well as displacement
latent_error                    how near a latent is to that of the true clip
summarise                       statistics of each number over the clips, for summary.json
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

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


STILL = 0.05  # grey levels; below it a clip is still, and a ratio to it says nothing


def frame_difference(frames: np.ndarray) -> float:
    """Mean over pixels, channels and pairs of neighbouring frames, in grey levels 0..255, of uint8 (F, H, W, 3)."""
    if frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"motion needs (F, H, W, 3) with two frames or more, not {frames.shape}")
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def motion_ratio(generated: float, true: float) -> float | None:
    """generated / true, frame differences of the same scene; None where the true clip is still."""
    return None if true < STILL else generated / true


def latent_error(latents: Tensor, true: Tensor) -> float:
    """Mean squared error over all frames of scaled latents (F, C, h, w)."""
    if latents.shape != true.shape:
        raise ValueError(f"latents of {tuple(latents.shape)} compared with {tuple(true.shape)}")
    return float((latents.double() - true.double()).square().mean())


def summarise(values: Iterable[float | None]) -> dict[str, float | int]:
    """n, median, mean and quartiles of the values that are not None; only n where there are none."""
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
