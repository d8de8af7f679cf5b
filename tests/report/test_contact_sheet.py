"""The picture of a cache shows every clip in its place."""

import numpy as np

from pipeline.report.contact_sheet import contact_sheet, shown_frames


def test_sheet_shows_first_middle_and_last_frame() -> None:
    assert shown_frames(16) == [0, 7, 15] and shown_frames(2) == [0, 1] and shown_frames(1) == [0]


def test_every_frame_is_pasted_whole_and_long_labels_stay_in_their_cell() -> None:
    clips = [("Ж" * 200, np.full((3, 16, 24, 3), 40 * index + 20, np.uint8)) for index in range(5)]
    pixels = np.asarray(contact_sheet(clips, columns=4))
    for index in range(5):
        frame = (pixels == 40 * index + 20).all(-1)
        assert frame.sum() >= 3 * 16 * 24
    assert pixels.shape[1] == 4 * (3 * 24 + 4 * 4)


def test_one_clip_makes_a_sheet() -> None:
    assert contact_sheet([("", np.zeros((1, 8, 8, 3), np.uint8))]).size == (16, 30)
