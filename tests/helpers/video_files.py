"""Videos that the tests make for themselves: every frame shows its own number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def picture(index: int, height: int = 72, width: int = 96) -> np.ndarray:
    """uint8 (height, width, 3): a gradient, and the number in a row of 8 black and white squares."""
    frame = np.empty((height, width, 3), np.uint8)
    frame[..., 0] = np.linspace(40, 200, width)[None]
    frame[..., 1] = np.linspace(60, 180, height)[:, None]
    frame[..., 2] = 90
    side = width // 12
    for bit in range(8):
        left = width // 6 + bit * side
        frame[height // 2 - side : height // 2 + side, left : left + side] = 255 if index >> bit & 1 else 0
    return frame


def number(frame: np.ndarray) -> int:
    """The number that `picture` wrote into a frame of any size of that shape."""
    resized = np.asarray(Image.fromarray(frame).resize((96, 72)))
    return sum(int(resized[36, 16 + bit * 8 + 4].mean() > 127) << bit for bit in range(8))


def write_video(
    path: Path,
    frames: int = 60,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (72, 96),
    tag: str | None = None,
    pixels: str = "yuv420p",
    rotation: int = 0,
    time: Callable[[int], int] = lambda index: index,
    audio_first: bool = False,
) -> Path:
    """A video of `frames` numbered frames at 25 a second; `time` maps a frame's index to its time stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container, container_options=container_options or {}) as output:
        if audio_first:
            sound = output.add_stream("aac", rate=16000)
        stream: Any = output.add_stream(codec, rate=25, options=options or {"preset": "veryfast", "crf": "10"})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if tag:
            stream.codec_tag = tag
        if rotation:
            stream.set_display_rotation(rotation)
        if audio_first:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            output.mux(sound.encode(silence))
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts = time(index)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if audio_first:
            output.mux(sound.encode())
    return path


def sequential(path: Path) -> list[np.ndarray]:
    """All frames of the main video stream, decoded from the first to the last."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]  # type: ignore[union-attr, call-arg]
