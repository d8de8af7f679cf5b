import io

import av
import numpy as np
from PIL import Image, ImageSequence

from pipeline.media import decode_mp4, encode_gif, encode_mp4, frames_side_by_side, tile
from pipeline.metrics.psnr import psnr


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


def test_same_frames_give_the_same_bytes() -> None:
    assert encode_mp4(moving_square(), 8) == encode_mp4(moving_square(), 8)


def test_gif_plays_every_frame_for_ever() -> None:
    clip = moving_square(frames=5)
    with Image.open(io.BytesIO(encode_gif(clip, fps=8))) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (5, 0, 120)  # in hundredths of a second
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
