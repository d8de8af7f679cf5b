"""Which frames make a clip."""

from typing import Any

import numpy as np
import pytest

from pipeline.data.decode.crop import crop_box, resize_and_crop
from pipeline.data.plan.windows import (
    TooShort,
    Window,
    clip_key,
    fitting_span,
    full_span,
    place_window,
    window_indices,
    window_start,
)
from pipeline.settings import DataSettings, load

DEFAULT = load([])[0].data
AUTHORS = [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47]


def settings(**changes: Any) -> DataSettings:
    return DEFAULT.model_copy(update=changes)


def place(source: int, ordinal: int = 0, clips: int = 1, video: str = "a.mp4", **changes: Any) -> Window:
    return place_window(source, ordinal, clips, video, "00ff", settings(**changes))


def test_sixteen_frames_at_stride_three_need_46() -> None:
    assert full_span(16, 3, "uniform") == 46
    assert window_indices(5, 46, 16) == list(range(5, 51, 3))
    assert fitting_span(46, 16, 3, "uniform", "reject") == 46
    assert fitting_span(45, 16, 3, "uniform", "reject") is None
    with pytest.raises(TooShort, match="45 frames, 46 needed"):
        place(45, short_video="reject")


def test_the_authors_window_is_their_linspace_over_48() -> None:
    assert window_indices(0, full_span(16, 3, "ucf101_authors"), 16) == AUTHORS
    assert place(100, window="ucf101_authors") == Window(26, 48, 3)
    assert place(48, window="ucf101_authors") == Window(0, 48, 3)
    assert place(40, window="ucf101_authors") == Window(0, 40, 2), "all of a shorter video, as their loader does"
    with pytest.raises(TooShort, match="47 frames, 48 needed"):
        place(47, window="ucf101_authors", short_video="reject")
    with pytest.raises(TooShort, match="15 frames, 16 needed"):
        place(15, window="ucf101_authors")


@pytest.mark.parametrize("stride", range(1, 12))
@pytest.mark.parametrize("start", [0, 7, 1013])
def test_a_uniform_window_is_uniform_whatever_rounding_does(stride: int, start: int) -> None:
    assert window_indices(start, full_span(16, stride, "uniform"), 16) == [start + stride * i for i in range(16)]


@pytest.mark.parametrize(("source", "stride"), [(46, 3), (45, 2), (31, 2), (30, 1), (16, 1), (15, None), (0, None)])
def test_short_video_reduces_the_stride_as_far_as_one(source: int, stride: int | None) -> None:
    span = fitting_span(source, 16, 3, "uniform", "reduce_stride")
    assert span == (None if stride is None else full_span(16, stride, "uniform"))
    if stride is not None:
        assert span is not None and span <= source and place(source).stride == stride


@pytest.mark.parametrize("room", [0, 1, 4, 54, 955])
@pytest.mark.parametrize("clips", [1, 2, 3, 7])
def test_windows_stay_inside_differ_and_spread(room: int, clips: int) -> None:
    for position in (None, 0.0, 0.999):
        starts = [window_start(room, ordinal, clips, position) for ordinal in range(clips)]
        there = [start for start in starts if start is not None]
        assert len(there) == min(clips, room + 1) and there == sorted(set(there))
        assert there[0] >= 0 and there[-1] <= room
        if len(there) == clips > 1:
            gaps = np.diff(there)
            assert gaps.max() - gaps.min() <= 1, "evenly"
    assert window_start(room, 0, 1, None) == room // 2


def test_single_frame_clip_of_a_single_frame_video() -> None:
    assert place(1, frames=1) == Window(0, 1, 3)


def test_random_windows_depend_on_the_video_and_the_seed_alone() -> None:
    changes: dict[str, Any] = {"stride": (1, 6), "clip_starts": "random"}
    windows = {video: place(300, video=video, **changes) for video in map(str, range(400))}
    assert {window.stride for window in windows.values()} == set(range(1, 7))
    for stride in range(1, 7):
        starts = [window.start for window in windows.values() if window.stride == stride]
        assert len(starts) > 30 and min(starts) < 60 and max(starts) > 300 - 15 * stride - 60
    assert all(place(300, video=video, **changes) == windows[video] for video in reversed(windows))
    other = {video: place(300, video=video, clip_seed=1, **changes) for video in windows}
    assert sum(other[video] != windows[video] for video in windows) > 350
    two = [place(300, ordinal, 2, clip_starts="random") for ordinal in (0, 1)]
    assert two[0].start < (300 - 45) / 2 + 1 <= two[1].start + 1


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
    base: tuple[Any, ...] = ("a/b.mp4", "00ff", Window(3, 46, 3), 16, 64, 64, False)
    others = ["a/c.mp4", "11ff", Window(4, 46, 3), 17, 65, 65, True]
    changed = [(*base[:i], other, *base[i + 1 :]) for i, other in enumerate(others)]
    changed.append((*base[:2], Window(3, 47, 3), *base[3:]))
    keys = {clip_key(*arguments) for arguments in [base, *changed]}
    assert len(keys) == 9
    assert clip_key(*base) == clip_key(*base)
    assert all(key.isalnum() and len(key) == 32 for key in keys)
    assert clip_key("имя 視頻 'q'.mp4", *base[1:]).isalnum()
