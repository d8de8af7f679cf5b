"""The motion score of a known optical flow."""

import numpy as np
import pytest

from pipeline.metrics.motion import motion_score


def test_motion_score_is_the_length_of_the_flow() -> None:
    flow = np.zeros((3, 4, 4, 2), np.float16)
    flow[:, :2] = (3, -4)  # half of the picture moves five pixels a frame
    assert motion_score(flow) == 2.5
    with pytest.raises(ValueError, match="optical flow"):
        motion_score(flow[..., 0])
