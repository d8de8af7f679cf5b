"""How much a clip moves: the mean absolute difference of one frame to the next.

It sees texture and lighting as well as displacement, so two clips are compared only where they show the same scene.
"""

import numpy as np

STILL = 0.05  # grey levels; below it a clip is still, and a ratio to it says nothing


def frame_difference(frames: np.ndarray) -> float:
    """Mean over pixels, channels and pairs of neighbouring frames, in grey levels 0..255, of uint8 (F, H, W, 3)."""
    if frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"motion needs (F, H, W, 3) with two frames or more, not {frames.shape}")
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def motion_score(flow: np.ndarray) -> float:
    """CIL's motion score (Appendix B): mean length of the optical flow, in pixels a frame, of (F - 1, H, W, 2).

    Of the flow from each frame to the next, by whatever network; scores of two networks, or at two resolutions, do not
    compare.
    """
    if flow.ndim != 4 or flow.shape[-1] != 2 or not len(flow):
        raise ValueError(f"a clip's optical flow is (F - 1, H, W, 2) with F >= 2, not {flow.shape}")
    return float(np.linalg.norm(flow.astype(np.float64), axis=-1).mean())


def motion_ratio(generated: float, true: float) -> float | None:
    """generated / true, frame differences of the same scene; None where the true clip is still."""
    return None if true < STILL else generated / true
