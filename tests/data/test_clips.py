"""Which frames make a clip."""

import numpy as np
import pytest

from pipeline.data.clips import (
    clip_key,
    crop_box,
    fitting_stride,
    frames_needed,
    resize_and_crop,
    window_indices,
    window_starts,
)


def test_sixteen_frames_at_stride_three_need_46() -> None:
    assert frames_needed(16, 3) == 46
    assert window_indices(0, 16, 3)[-1] == 45
    assert fitting_stride(46, 16, 3, "reject") == 3
    assert fitting_stride(45, 16, 3, "reject") is None


@pytest.mark.parametrize(("source", "stride"), [(46, 3), (45, 2), (31, 2), (30, 1), (16, 1), (15, None), (0, None)])
def test_short_video_reduces_the_stride_as_far_as_one(source: int, stride: int | None) -> None:
    assert fitting_stride(source, 16, 3, "reduce_stride") == stride
    if stride is not None:
        assert frames_needed(16, stride) <= source


@pytest.mark.parametrize("source", [46, 47, 50, 100, 1001])
@pytest.mark.parametrize("clips", [1, 2, 3, 7])
def test_windows_stay_inside_and_spread(source: int, clips: int) -> None:
    starts = window_starts(source, 46, clips)
    assert len(starts) == clips and starts == sorted(starts)
    assert starts[0] >= 0 and starts[-1] + 46 <= source
    gaps = np.diff([-(starts[0] + 1), *starts, 2 * (source - 46) - starts[-1]])
    assert gaps.max() - gaps.min() <= 3, "evenly"


def test_single_frame_clip_of_a_single_frame_video() -> None:
    assert fitting_stride(1, 1, 3, "reduce_stride") == 3
    assert window_starts(1, 1, 1) == [0]


def test_crop_keeps_shape_and_centre() -> None:
    left, top, right, bottom = crop_box(240, 320, 256, 256)
    assert (left, top, right, bottom) == (40, 0, 280, 240)
    frame = np.zeros((240, 320, 3), np.uint8)
    frame[:, 40:280] = 200  # what a centre crop shows
    assert (resize_and_crop(frame, 64, 64)[:, 1:-1] == 200).all()
    assert resize_and_crop(frame, 64, 96).shape == (64, 96, 3)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    small = resize_and_crop(np.repeat(checkers[..., None], 3, 2).astype(np.uint8), 8, 8)
    assert abs(int(small.mean()) - 127) < 3 and small.std() < 10


def test_key_changes_with_everything_that_makes_the_clip() -> None:
    base = ("a/b.mp4", "00ff", 3, 3, 16, 64, 64)
    others = [("a/c.mp4", *base[1:])]
    others += [(*base[:i], base[i] + 1 if i > 1 else "11ff", *base[i + 1 :]) for i in range(1, 7)]  # type: ignore[operator]
    keys = {clip_key(*arguments) for arguments in [base, *others]}  # type: ignore[arg-type]
    assert len(keys) == 8
    assert clip_key(*base) == clip_key(*base)
    assert all(key.isalnum() and len(key) == 32 for key in keys)
    assert clip_key("имя 視頻 'q'.mp4", *base[1:]).isalnum()
