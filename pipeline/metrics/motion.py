"""Motion of a clip, by its optical flow."""

import numpy as np


def motion_score(flow: np.ndarray) -> float:
    """CIL's motion score (Appendix B): mean length of the optical flow, in pixels a frame.

    `flow` (F - 1, H, W, 2) leads from each frame to the next, by any network. Scores of two networks, or at two
    resolutions, do not compare.
    """
    if flow.ndim != 4 or flow.shape[-1] != 2 or not len(flow):
        raise ValueError(f"a clip's optical flow is (F - 1, H, W, 2) with F >= 2, not {flow.shape}")
    return float(np.linalg.norm(flow.astype(np.float64), axis=-1).mean())
