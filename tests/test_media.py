import io

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from pipeline import media
from pipeline.media import decode_mp4, encode_gif, encode_mp4, frames_side_by_side, tile, write_h264
from pipeline.sampling.measures import psnr
from pipeline.shipped.synthetic import random_scene, render


def moving_square(frames: int = 16, side: int = 64) -> np.ndarray:
    clip = np.full((frames, side, side, 3), (60, 150, 90), np.uint8)
    for index, frame in enumerate(clip):
        frame[20:44, 4 + index : 28 + index] = (220, 60, 40)
    return clip


def test_clip_survives_the_file() -> None:
    clip = moving_square()
    content = encode_mp4(clip, fps=8)
    back = decode_mp4(content)
    assert back.shape == clip.shape
    assert psnr(back, clip) > 27  # chroma at half resolution costs the most
    # flat colours come back: the matrix written and the matrix meant are the same one
    assert np.abs(back[:, 2, 2].astype(int) - (60, 150, 90)).max() <= 4
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8


SHAPES = ((16, 64, 64), (16, 96, 96), (16, 112, 112), (4, 32, 32), (40, 64, 96), (1, 16, 16))  # frames, height, width


def drifting_blocks(frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (frames, height, width, 3): a random pattern that moves, so that x264 predicts frames from one another."""
    random = np.random.default_rng([frames, height, width])
    pattern = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(pattern, (index, 2 * index), (0, 1)) for index in range(frames)])


def written(clip: np.ndarray, crf: int = 12, preset: str = "medium") -> bytes:
    target = io.BytesIO()
    write_h264(target, clip, 8, crf, preset)
    return target.getvalue()


@pytest.mark.parametrize(("crf", "preset"), [(12, "medium"), (16, "veryfast")], ids=["clips", "synthetic videos"])
def test_same_frames_give_the_same_bytes_whatever_lies_in_freed_memory(crf: int, preset: str) -> None:
    random = np.random.default_rng(0)
    clips = [drifting_blocks(*shape) for shape in SHAPES]
    files: list[set[bytes]] = [set() for _ in clips]
    for _ in range(40):
        for clip, found in zip(clips, files, strict=True):
            dirt = [random.integers(0, 256, size, np.uint8) for size in random.integers(1 << 10, 1 << 18, 8)]
            del dirt
            found.add(written(clip, crf, preset))
    assert [len(found) for found in files] == [1] * len(clips)


def test_x264_gives_the_same_bytes_without_vector_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    scene = random_scene("SlideRight", random)
    clip = np.stack([render(scene, index / 25) for index in range(40)])
    here = written(clip, 16, "veryfast")
    monkeypatch.setattr(media, "X264_PARAMS", f"{media.X264_PARAMS}:asm=0")
    assert written(clip, 16, "veryfast") == here


def test_gif_plays_every_frame_for_ever() -> None:
    clip = moving_square(frames=5)
    with Image.open(io.BytesIO(encode_gif(clip, fps=8))) as gif:
        assert (getattr(gif, "n_frames", 1), gif.info["loop"], gif.info["duration"]) == (
            5,
            0,
            120,
        )  # in hundredths of a second
        for index, frame in enumerate(ImageSequence.Iterator(gif)):
            assert psnr(np.asarray(frame.convert("RGB")), clip[index]) > 40


def test_picture_has_a_line_a_clip_from_its_first_frame_to_its_last() -> None:
    clips = [
        np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1).repeat(8, 1).repeat(8, 2).repeat(3, 3) + 20 * n for n in (1, 2)
    ]
    picture = frames_side_by_side(clips)
    assert picture.shape == (2 * 10 + 2, 4 * 10 + 2, 3)
    assert [picture[4, 4 + 10 * column, 0] for column in range(4)] == [20, 23, 25, 28]
    assert picture[14, 34, 0] == 48


def test_grid_holds_every_clip_whole() -> None:
    clips = [np.full((2, 8, 8, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    sheet = tile(clips)
    assert sheet.shape == (2, 22, 32, 3)  # 2 lines of 3, even sides
    for value in (10, 20, 30, 40, 50):
        assert (sheet[0] == value).all(-1).sum() == 64
