"""Clips as files: read and write MP4 (H.264), GIF and PNG, and tile several clips into one."""

import io
import math
from collections.abc import Iterable
from typing import IO, Any

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

# x264's lookahead with AVX-512 reads freed memory: without this, the same frames give other bytes one time in five
X264_PARAMS = "cpu-independent=1"
BT709 = 1  # in H.264's own numbers, for matrix, primaries and transfer


def write_h264(target: str | IO[bytes], frames: Iterable[np.ndarray], fps: int, crf: int, preset: str) -> None:
    """Write an MP4 file of H.264 yuv420p, the only writer of H.264 here.

    The same frames give the same bytes, whatever the process did before.

    Args:
        target: path, or binary file object open for writing
        frames: uint8 (H, W, 3) each, all of one size with even sides; at least one
        fps: frames per second
        crf: x264's quality; lower is better and larger
        preset: x264's trade of time for size
    """
    with av.open(target, "w", format="mp4") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                options = {"crf": str(crf), "preset": preset, "x264-params": X264_PARAMS}
                stream = container.add_stream("libx264", rate=fps, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.thread_count = 1
                context.colorspace = context.color_primaries = context.color_trc = BT709  # players need not guess
                context.color_range = 1
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def encode_mp4(frames: np.ndarray, fps: int) -> bytes:
    """The bytes of an MP4 file of uint8 (F, H, W, 3) with even sides; its losses are hard to see."""
    buffer = io.BytesIO()
    write_h264(buffer, frames, fps, crf=12, preset="medium")
    return buffer.getvalue()


def decode_mp4(content: bytes) -> np.ndarray:
    """Decode a file that `encode_mp4` wrote to uint8 (F, H, W, 3)."""
    with av.open(io.BytesIO(content), "r") as container:
        return np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])


def encode_gif(frames: np.ndarray, fps: int) -> bytes:
    """Make an endless GIF of uint8 (F, H, W, 3) for a glance: it has 256 colours a frame."""
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
    """Draw each clip, uint8 (F, H, W, 3) of one shape, as a line of `shown` frames, first to last: uint8 (H, W, 3)."""
    picks = np.linspace(0, len(clips[0]) - 1, min(shown, len(clips[0]))).round().astype(int)
    return tile([clip[[index]] for clip in clips for index in picks], columns=len(picks))[0]


def tile(clips: list[np.ndarray], gap: int = 2, columns: int | None = None) -> np.ndarray:
    """Lay clips, uint8 (F, H, W, 3) of one shape, side by side on mid-grey as one clip.

    Without `columns`, the grid has about as many columns as lines.
    """
    frames, height, width, _ = clips[0].shape
    columns = columns or math.ceil(math.sqrt(len(clips)))
    lines = math.ceil(len(clips) / columns)
    sheet = np.full((frames, lines * (height + gap) + gap, columns * (width + gap) + gap, 3), 128, np.uint8)
    for number, clip in enumerate(clips):
        top, left = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = clip
    return sheet
