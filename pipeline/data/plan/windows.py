"""VIDEO -> WINDOW: which frames of a video make a clip, and what the clip is called.

Pure functions of numbers; nothing here opens a file. A window is `span` source frames from `start` on, and its clip
takes `frames` of them, evenly: that is every stride-th frame where span = (frames - 1) * stride + 1, and the uneven
0, 3, ..., 21, 25, ..., 47 of the authors' UCF-101 loader where span = frames * stride = 48.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ...settings import DataSettings


class TooShort(ValueError):
    """The video has no room for the clip; the message says how many frames there are and are needed."""


class Window(NamedTuple):
    """Where a clip lies in its video."""

    start: int  # first source frame
    span: int  # source frames from the first to the last, both counted
    stride: int  # source frames between clip frames, rounded down


def place_window(
    source_frames: int, ordinal: int, clips: int, video: str, source_hash: str, data: DataSettings
) -> Window:
    """The window of clip `ordinal` of `clips` in a video of `source_frames` frames. Raises TooShort.

    Random strides and starts are functions of data.clip_seed, the video (its path and content) and the ordinal.
    """

    def draw(what: str) -> float:
        return float(unit_hashes(["\0".join(map(str, (data.clip_seed, what, video, source_hash, ordinal)))])[0])

    low, high = data.stride_range
    stride = low + int(draw("stride") * (high - low + 1))
    span = fitting_span(source_frames, data.frames, stride, data.window, data.short_video)
    if span is None:
        least = data.frames if data.short_video == "reduce_stride" else full_span(data.frames, stride, data.window)
        raise TooShort(f"{source_frames} frames, {least} needed")
    room = source_frames - span
    start = window_start(room, ordinal, clips, draw("start") if data.clip_starts == "random" else None)
    if start is None:
        raise TooShort(f"{source_frames} frames leave room for {room + 1} of {clips} clips")
    return Window(start, span, (span - 1) // (data.frames - 1) if data.frames > 1 else stride)


def full_span(frames: int, stride: int, window: str) -> int:
    """Source frames of a window: 46 for 16 frames at stride 3 (uniform), 48 (ucf101_authors)."""
    return frames * stride if window == "ucf101_authors" else (frames - 1) * stride + 1


def fitting_span(source_frames: int, frames: int, stride: int, window: str, short_video: str) -> int | None:
    """The span that a video of `source_frames` allows, or None if it is too short.

    With short_video "reject" only the full one. With "reduce_stride" at the largest stride that fits, down to 1; the
    authors' window then takes the whole video, as their loader does.
    """
    span = full_span(frames, stride, window)
    if span <= source_frames:
        return span
    if short_video == "reject" or source_frames < frames:
        return None
    if window == "ucf101_authors":
        return source_frames
    return full_span(frames, (source_frames - 1) // (frames - 1), window)


def window_start(room: int, ordinal: int, clips: int, position: float | None) -> int | None:
    """First frame of a window that may start at 0 ... room; None if no frame is left for it.

    Each of `clips` has its own equal share of the room, so no two start alike. It starts in the middle of its share, or
    at `position`, a number in [0, 1), within it.
    """
    low, high = (-(-(room + 1) * number // clips) for number in (ordinal, ordinal + 1))
    if low == high:
        return None
    return low + ((high - low - 1) // 2 if position is None else int(position * (high - low)))


def window_indices(start: int, span: int, frames: int) -> list[int]:
    """Source frames of the clip: evenly from the first to the last of its window, cut to integers."""
    return np.linspace(start, start + span - 1, frames, dtype=int).tolist()


def clip_key(video: str, source_hash: str, window: Window, frames: int, height: int, width: int, flip: bool) -> str:
    """Name of a clip: 32 hexadecimal digits from the video's relative path, its content and the window."""
    identity = [video, source_hash, window.start, window.span, frames, height, width, *(["flip"] if flip else [])]
    return hashlib.blake2b(_bytes("\0".join(map(str, identity))), digest_size=16).hexdigest()


def unit_hashes(names: Iterable[str]) -> np.ndarray:
    """(N,) float64 in [0, 1): a number from each name, always the same."""
    digests = b"".join(hashlib.blake2b(_bytes(name), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, ">u8") / 2.0**64


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
