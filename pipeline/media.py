"""Clips as files: H.264 in MP4, PNG, the grid. Bytes in and out; where they go is the caller's concern."""

import io
import math

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

CRF = "12"  # x264's quality: differences are hard to see, files stay small


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """An MP4 file, H.264 yuv420p, of uint8 (F, H, W, 3) with even sides. The same frames give the same bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": CRF, "preset": "medium"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = (
            1  # BT.709, said so that players need not guess
        )
        context.color_range = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(content: bytes) -> np.ndarray:
    """uint8 (F, H, W, 3) of a file that `encode_mp4` wrote."""
    with av.open(io.BytesIO(content), "r") as container:
        return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])


def encode_gif(frames: np.ndarray, fps: int) -> bytes:
    """A GIF, played for ever, of uint8 (F, H, W, 3): 256 colours a frame, so for looking at only."""
    first, *others = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def encode_png(picture: np.ndarray) -> bytes:
    """A PNG file of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def frames_side_by_side(clips: list[np.ndarray], shown: int = 4) -> np.ndarray:
    """uint8 (H, W, 3): a line for each clip, uint8 (F, H, W, 3) of one shape, with `shown` frames from first to last."""
    picks = np.linspace(0, len(clips[0]) - 1, min(shown, len(clips[0]))).round().astype(int)
    picture: np.ndarray = tile([clip[[index]] for clip in clips for index in picks], columns=len(picks))[0]
    return picture


def tile(clips: list[np.ndarray], gap: int = 2, columns: int | None = None) -> np.ndarray:
    """Clips uint8 (F, H, W, 3) of one shape, side by side on mid-grey: one clip. Without `columns`, about as wide as high."""
    frames, height, width, _ = clips[0].shape
    columns = columns or math.ceil(math.sqrt(len(clips)))
    lines = math.ceil(len(clips) / columns)
    sheet = np.full((frames, lines * (height + gap) + gap, columns * (width + gap) + gap, 3), 128, np.uint8)
    for number, clip in enumerate(clips):
        top = gap + number // columns * (height + gap)
        left = gap + number % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = clip
    return sheet
