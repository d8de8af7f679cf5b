import numpy as np
import pytest

from pipeline.metrics.motion import frame_difference, motion_ratio, motion_score


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


def test_ratio() -> None:
    assert motion_ratio(3.0, 2.0) == 1.5
    assert motion_ratio(3.0, 0.0) is None


def test_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="two frames"):
        frame_difference(np.zeros((1, 4, 4, 3), np.uint8))


def test_motion_score_is_the_length_of_the_flow() -> None:
    flow = np.zeros((3, 4, 4, 2), np.float16)
    flow[:, :2] = (3, -4)  # half of the picture moves five pixels a frame
    assert motion_score(flow) == 2.5
    with pytest.raises(ValueError, match="optical flow"):
        motion_score(flow[..., 0])
