"""VIDEO -> CLIP: which frames of a video make a clip, how they are cropped, and what the clip is called.

Pure functions of numbers; nothing here opens a file.
"""

import hashlib

import numpy as np
from PIL import Image


def frames_needed(frames: int, stride: int) -> int:
    """Source frames from the first to the last of a clip: 16 frames at stride 3 need 46."""
    return (frames - 1) * stride + 1


def fitting_stride(source_frames: int, frames: int, stride: int, short_video: str) -> int | None:
    """The stride that a video of `source_frames` allows, or None if it is too short.

    With short_video "reduce_stride" the largest that fits, from `stride` down to 1; with "reject" only
    `stride`.
    """
    if frames_needed(frames, stride) <= source_frames:
        return stride
    if short_video == "reject" or source_frames < frames:
        return None
    return (source_frames - 1) // (frames - 1)


def window_starts(source_frames: int, needed: int, clips: int) -> list[int]:
    """First frames of `clips` windows of `needed` frames, each in the middle of its share of the room.

    A video with little room gives the same start more than once.
    """
    room = source_frames - needed
    return [room * (2 * ordinal + 1) // (2 * clips) for ordinal in range(clips)]


def window_indices(start: int, frames: int, stride: int) -> list[int]:
    """Source frames of the clip: start, start + stride, ..."""
    return [start + stride * index for index in range(frames)]


def crop_box(source_height: int, source_width: int, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in pixels, of the largest centred box of the shape height x width."""
    scale = min(source_height / height, source_width / width)
    left, top = (source_width - width * scale) / 2, (source_height - height * scale) / 2
    return left, top, left + width * scale, top + height * scale


def resize_and_crop(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Short side resized to fit, centre cropped: uint8 (H, W, 3) -> (height, width, 3).

    Pillow's bilinear filter, which averages when it shrinks (as torch's interpolate with antialias does).
    """
    source_height, source_width = frame.shape[:2]
    if (source_height, source_width) == (height, width):
        return np.ascontiguousarray(frame)
    box = crop_box(source_height, source_width, height, width)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box=box))


def clip_key(video: str, source_hash: str, start: int, stride: int, frames: int, height: int, width: int) -> str:
    """Name of a clip: 32 hexadecimal digits from the video's relative path, its content and the span."""
    identity = "\0".join(map(str, (video, source_hash, start, stride, frames, height, width)))
    return hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
