"""CLIP -> FRAMES: decord, PyAV and torchcodec behind one function.

Right frames come first: frame i of a video is the i-th picture that a sequential decode of the whole stream
gives. PyAV, read in sequence, is that by definition. decord and torchcodec seek, which is faster in long videos,
but they are wrong where timestamps are missing or frames are dropped. So `auto` takes decord only for files whose
packets rule that out, and with either set by name the other files are rejected, never decoded to wrong frames.

This runs in a child process (child.py), so it imports neither torch nor Ray.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from ...errors import UserError
from ...schema import ClipSpan, PlannedClip
from ...settings import DataSettings
from ..plan.windows import TooShort, Window, clip_key, place_window, window_indices
from .crop import resize_and_crop
from .fetch import DecodeFailure, local_file, one_line
from .probe import AV_ERRORS, Probe, dropped, opened, probe_packets

FrameAt = Callable[[int], np.ndarray]  # source index -> uint8 (H, W, channels)


def check_decoder(data: DataSettings) -> None:
    """Raise UserError if data.decoder is not installed on this machine."""
    if data.decoder != "torchcodec":
        return
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data.decoder = torchcodec: cannot be imported ({why}); install torchcodec==0.13.0 and the system's "
            "FFmpeg libraries on every node, or set data.decoder auto"
        ) from error


def decode_clip(planned: PlannedClip, data: DataSettings, decoder: str | None = None) -> tuple[np.ndarray, ClipSpan]:
    """Return frames uint8 (F, H, W, 3) of a planned clip, and where they lie in its video. Raises DecodeFailure.

    `decoder` stands in for data.decoder.
    """
    made = _made_once if data.flip else _make  # a mirrored clip comes right after its original
    video = planned["uri"], planned["video"], planned["size"]
    frames, window, described = made(*video, planned["ordinal"], planned["clips"], data, decoder or data.decoder)
    digest = described["source_hash"]
    key = clip_key(planned["video"], digest, window, data.frames, data.height, data.width, planned["flip"])
    if planned["flip"]:
        frames = np.ascontiguousarray(frames[:, :, ::-1])
    return frames, {**described, "key": key}


def _make(
    uri: str, video: str, size: int, ordinal: int, clips: int, data: DataSettings, wanted: str
) -> tuple[np.ndarray, Window, ClipSpan]:
    """(frames as they are in the video, their window, the span without its key). Raises DecodeFailure."""
    with local_file(uri) as path:
        source_hash = _hash(str(path), uri, size)
        probe = probe_packets(str(path), uri, size)
        if probe.height * probe.width > data.max_pixels:
            raise DecodeFailure(
                "too_large", f"frames of {probe.width} x {probe.height}, more than data.max_pixels = {data.max_pixels}"
            )

        def place(source_frames: int) -> Window:
            try:
                return place_window(source_frames, ordinal, clips, video, source_hash, data)
            except TooShort as error:
                raise DecodeFailure("too_short", str(error)) from error

        clip = _Clip(path, probe, place, data)
        frames, decoder = clip.decode(wanted)
    span: ClipSpan = {
        "key": "",
        "source_hash": source_hash,
        "start": clip.window.start,
        "stride": clip.window.stride,
        "span": clip.window.span,
        "source_frames": clip.source_frames,
        "source_fps": probe.fps,
        "source_height": clip.source_size[0],
        "source_width": clip.source_size[1],
        "decoder": decoder,
    }
    return np.stack(frames), clip.window, span


_made_once = lru_cache(maxsize=1)(_make)


class _Clip:
    """One clip of one video: its window, which depends on the number of frames, and its frames."""

    def __init__(self, path: Path, probe: Probe, place: Callable[[int], Window], data: DataSettings) -> None:
        self.path, self.probe, self.place, self.data = path, probe, place, data
        self.window, self.source_frames = Window(0, 0, 0), 0
        self.source_size: tuple[int, ...] = ()  # height and width of the frames, once there is one

    def decode(self, wanted: str) -> tuple[list[np.ndarray], str]:
        """(frames, the decoder that gave them)."""
        if wanted in SEEKING and wanted not in self.probe.right:
            raise DecodeFailure("unsupported", f"{wanted} cannot be trusted with this file; data.decoder auto can")
        if wanted in SEEKING:
            return self.by_seeking(wanted), wanted
        if wanted == "auto" and "decord" in self.probe.right:
            try:
                return self.by_seeking("decord"), "decord"
            except DecodeFailure as failure:
                if failure.reason not in ("unreadable", "miscounted"):
                    raise
        return self.by_pyav(), "pyav"

    def indices(self, source_frames: int) -> list[int]:
        """Start over: source indices of the clip in a video of `source_frames` frames. Raises DecodeFailure."""
        self.window, self.source_frames, self.source_size = self.place(source_frames), source_frames, ()
        return window_indices(self.window.start, self.window.span, self.data.frames)

    def by_seeking(self, decoder: str) -> list[np.ndarray]:
        """The frames. Raises DecodeFailure, also "unreadable", and "miscounted" if it disagrees with the packets."""
        try:
            count, frame_at = SEEKING[decoder](str(self.path))
            if count != self.probe.packets:
                raise DecodeFailure("miscounted", f"{decoder} finds {count} frames, of {self.probe.packets} packets")
            frames: list[np.ndarray] = []
            for index in self.indices(count):
                frame = frame_at(index)
                if frame.shape[2] != 3:  # decord takes the padding of some narrow frames (48, 72 wide) for a channel
                    raise DecodeFailure("unreadable", f"{decoder}: frames of {frame.shape[2]} channels")
                frames.append(self.shrink(frame))
            return frames
        except DecodeFailure:
            raise
        except _errors(decoder) as error:
            raise DecodeFailure("unreadable", f"{decoder}: {error}") from error

    def by_pyav(self) -> list[np.ndarray]:
        """The frames, from a sequential decode up to the last of them.

        The packets say how many frames to expect, which places the window. Where that was wrong, the video is
        decoded once more with the number of frames that it gave. Raises DecodeFailure.
        """
        expected = self.probe.packets if self.probe.counted else sum(1 for _ in _pictures(self.path))
        if not expected:
            raise DecodeFailure("no_frames", "nothing in the video stream decodes to a frame")
        frames, seen = self._collect(self.indices(expected))
        if len(frames) < self.data.frames:
            frames, _ = self._collect(self.indices(seen))
        return frames

    def _collect(self, indices: list[int]) -> tuple[list[np.ndarray], int]:
        """The frames at `indices`, as far as the stream has them, and the number of frames seen."""
        wanted = set(indices)
        frames: list[np.ndarray] = []
        seen = 0
        for picture in _pictures(self.path):
            if seen in wanted:
                frames.append(self.shrink(_upright(picture, self.data.max_pixels)))
            seen += 1
            if seen > indices[-1]:
                break
        return frames, seen

    def shrink(self, frame: np.ndarray) -> np.ndarray:
        """The frame at the clip's size. Raises DecodeFailure if its own size differs from the frames before."""
        before, now = self.source_size or frame.shape[:2], frame.shape[:2]
        if now != before:
            raise DecodeFailure("resolution_change", f"from {before[1]} x {before[0]} to {now[1]} x {now[0]}")
        self.source_size = now
        return resize_and_crop(frame, self.data.height, self.data.width)


def _open_decord(path: str) -> tuple[int, FrameAt]:
    """Return the number of frames, and a function that gives one."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # one thread: two gain 2-7 %, two processes of one thread 42-58 %
    reader = decord.VideoReader(path, num_threads=1)
    return len(reader), lambda index: reader[index].asnumpy()


def _open_torchcodec(path: str) -> tuple[int, FrameAt]:
    """Return the number of frames, and a function that gives one."""
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return len(reader), lambda index: reader[index].numpy()


def _errors(decoder: str) -> tuple[type[Exception], ...]:
    """The exceptions of a seeking decoder on a file that it cannot read."""
    if decoder == "torchcodec":
        return RuntimeError, IndexError, ValueError
    import decord

    return RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError


SEEKING = {"decord": _open_decord, "torchcodec": _open_torchcodec}


def _pictures(path: Path) -> Iterator[av.VideoFrame]:
    """The stream's pictures in sequence, from its start. Raises DecodeFailure."""
    with opened(path) as (container, stream):
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):  # the last one is empty and flushes the decoder
                if not dropped(packet):
                    yield from packet.decode()
        except AV_ERRORS as error:
            raise DecodeFailure("corrupt", one_line(error)) from error


def _upright(picture: av.VideoFrame, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 3), turned as the container's display matrix says. Raises DecodeFailure."""
    if picture.height * picture.width > max_pixels:  # streams may change their size on the way
        raise DecodeFailure("too_large", f"a frame of {picture.width} x {picture.height}")
    if picture.is_corrupt:
        raise DecodeFailure("corrupt", "the decoder marked a frame of the clip as damaged")
    try:
        frame = picture.to_ndarray(format="rgb24")
    except AV_ERRORS as error:
        raise DecodeFailure("corrupt", one_line(error)) from error
    return np.rot90(frame, picture.rotation // 90) if picture.rotation % 360 else frame


@lru_cache(maxsize=1)
def _hash(path: str, uri: str, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
