"""CLIP -> FRAMES: decord and PyAV behind one function.

Right frames come first: frame i of a video is the i-th picture that a sequential decode of the whole stream
gives. PyAV, read in sequence, is that by definition. decord seeks, which is faster in long videos, but it is
wrong where timestamps are missing or frames are dropped, so `auto` takes it only for files whose packets rule
that out.

Runs in a child process (isolation.py), so it imports little.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from pipeline.data.clips import (
    clip_key,
    fitting_stride,
    frames_needed,
    resize_and_crop,
    window_indices,
    window_starts,
)

if TYPE_CHECKING:
    from pipeline.schema import ClipSpan, PlannedClip
    from pipeline.settings import DataSettings

# Where decord's frames equal a sequential decode, measured file by file (tests/data/test_decode.py).
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}
DECORD_PIXELS = {
    "yuv420p",
    "yuvj420p",
}  # more bits: other colours; 4:4:4: wrong after a seek past x264's version mark
MIN_SIDE = 17  # decord cannot read frames of up to 16 pixels
COMPLETE = 0.9  # a video with fewer of the frames that its header promises is truncated
AV_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError, MemoryError)


class DecodeFailure(ValueError):
    """A clip that cannot be made: `reason`, a word that rejects are counted by, and `detail`, one line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it survives pickling
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]
        self.attempts = 1

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Probe:
    """What the packets of a video's main stream tell without decoding."""

    packets: int  # that carry a picture to be shown
    counted: bool  # the header agrees with `packets`; where it does not, only a decode can tell
    height: int  # as coded, before rotation
    width: int
    fps: float
    seekable: bool  # timestamps, codec and container are such that decord's frames are right


def decode_clip(planned: "PlannedClip", data: "DataSettings") -> tuple[np.ndarray, "ClipSpan"]:
    """Frames uint8 (F, H, W, 3) of a planned clip, and where they lie in its video. Raises DecodeFailure."""
    with local_file(planned["uri"]) as path:
        source_hash = _hash(str(path), planned["size"])
        probe = _probe(str(path), planned["size"])
        if probe.height * probe.width > data.max_pixels:
            raise DecodeFailure(
                "too_large",
                f"frames of {probe.width} x {probe.height}, more than data.max_pixels = {data.max_pixels}",
            )
        window = _Window(path, probe, planned["ordinal"], planned["clips"], data)
        use_decord = data.decoder == "decord" or (data.decoder == "auto" and probe.seekable)
        frames = window.by_decord(fall_back=data.decoder == "auto") if use_decord else None
        decoder = "pyav" if frames is None else "decord"
        if frames is None:
            frames = window.by_pyav()
    span: ClipSpan = {
        "key": clip_key(
            planned["video"], source_hash, window.start, window.stride, data.frames, data.height, data.width
        ),
        "source_hash": source_hash,
        "start": window.start,
        "stride": window.stride,
        "source_frames": window.source_frames,
        "source_fps": probe.fps,
        "source_height": window.source_size[0],
        "source_width": window.source_size[1],
        "decoder": decoder,
    }
    return np.stack(frames), span


class _Window:
    """One clip of one video: its span, which depends on the number of frames, and its frames."""

    def __init__(self, path: Path, probe: Probe, ordinal: int, clips: int, data: "DataSettings") -> None:
        self.path, self.probe, self.ordinal, self.clips, self.data = path, probe, ordinal, clips, data
        self.source_frames = self.start = self.stride = 0
        self.source_size = (probe.height, probe.width)

    def place(self, source_frames: int) -> list[int]:
        """Source indices of the clip in a video of so many frames. Raises DecodeFailure."""
        data = self.data
        stride = fitting_stride(source_frames, data.frames, data.stride, data.short_video)
        if stride is None:
            least = frames_needed(data.frames, 1 if data.short_video == "reduce_stride" else data.stride)
            raise DecodeFailure("too_short", f"{source_frames} frames, {least} needed")
        starts = window_starts(source_frames, frames_needed(data.frames, stride), self.clips)
        if starts[self.ordinal] in starts[: self.ordinal]:
            raise DecodeFailure(
                "too_short", f"{source_frames} frames leave room for {len(set(starts))} of {self.clips} clips"
            )
        self.source_frames, self.start, self.stride = source_frames, starts[self.ordinal], stride
        return window_indices(self.start, data.frames, stride)

    def by_decord(self, fall_back: bool) -> list[np.ndarray] | None:
        """The frames; None if `fall_back` and decord fails or disagrees with the packets."""
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            # one thread: two gain 2-7 %, two processes of one thread 42-58 %
            reader = decord.VideoReader(str(self.path), num_threads=1)
            if fall_back and len(reader) != self.probe.packets:
                return None
            frames: list[np.ndarray] = []
            for index in self.place(len(reader)):
                frame = reader[index].asnumpy()
                if frame.shape[2] != 3:  # decord takes the padding of some narrow frames (48, 72 wide) for a channel
                    raise RuntimeError(f"frames of {frame.shape[2]} channels")
                frames.append(self.shrink(frame, first=not frames))
            return frames
        except (RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError) as error:
            if fall_back:
                return None
            raise DecodeFailure("unreadable", f"decord: {error}") from error

    def by_pyav(self) -> list[np.ndarray]:
        """The frames, from a sequential decode up to the last of them.

        The packets say how many frames to expect, which places the window. Where that was wrong, the video is
        decoded once more with the number of frames that it gave. Raises DecodeFailure.
        """
        probe = self.probe
        expected = probe.packets
        if not probe.counted:
            expected = sum(1 for _ in _pictures(self.path))
        frames, seen = self._collect(self.place(expected))
        if len(frames) < self.data.frames:
            frames, _ = self._collect(self.place(seen))
        return frames

    def _collect(self, indices: list[int]) -> tuple[list[np.ndarray], int]:
        """The frames at `indices`, as far as the stream has them, and the number of frames seen."""
        wanted = set(indices)
        frames: list[np.ndarray] = []
        seen = 0
        for picture in _pictures(self.path):
            if seen in wanted:
                frames.append(self.shrink(_upright(picture, self.data.max_pixels), first=not frames))
            seen += 1
            if seen > indices[-1]:
                break
        return frames, seen

    def shrink(self, frame: np.ndarray, first: bool) -> np.ndarray:
        height, width = frame.shape[:2]
        if not first and (height, width) != self.source_size:
            raise DecodeFailure(
                "resolution_change",
                f"from {self.source_size[1]} x {self.source_size[0]} to {width} x {height}",
            )
        self.source_size = (height, width)
        return resize_and_crop(frame, self.data.height, self.data.width)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and its main video stream. Errors of FFmpeg become DecodeFailure."""
    av.logging.set_level(None)
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except AV_ERRORS as error:
        raise DecodeFailure("unreadable", _line(error)) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise DecodeFailure("no_video", f"no video stream among {len(container.streams)}")
        if stream.codec_context is None:
            raise DecodeFailure("unsupported", "no decoder for the video stream")
        yield container, stream


def _pictures(path: Path) -> Iterator[av.VideoFrame]:
    """The stream's pictures in sequence, from its start. Raises DecodeFailure."""
    with _opened(path) as (container, stream):
        stream.codec_context.thread_count = 1
        try:
            for packet in container.demux(stream):  # the last one is empty and flushes the decoder
                if not _dropped(packet):
                    yield from packet.decode()
        except AV_ERRORS as error:
            raise DecodeFailure("corrupt", _line(error)) from error


def _dropped(packet: av.Packet) -> bool:
    """XviD fills the place of a frame that it drops with one byte; FFmpeg passes over it, PyAV raises."""
    return packet.size == 1


def _upright(picture: av.VideoFrame, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 3), turned as the container's display matrix says."""
    if picture.height * picture.width > max_pixels:  # streams may change their size on the way
        raise DecodeFailure("too_large", f"a frame of {picture.width} x {picture.height}")
    if picture.is_corrupt:
        raise DecodeFailure("corrupt", "the decoder marked a frame of the clip as damaged")
    try:
        frame = picture.to_ndarray(format="rgb24")
    except AV_ERRORS as error:
        raise DecodeFailure("corrupt", _line(error)) from error
    return np.rot90(frame, picture.rotation // 90) if picture.rotation % 360 else frame


@lru_cache(maxsize=1)  # the clips of one video come one after another
def _probe(path: str, size: int) -> Probe:
    """Read the packets of the file of `size` bytes without decoding them. Raises DecodeFailure."""
    with _opened(Path(path)) as (container, stream):
        context = stream.codec_context
        packets, shown, last, clean = 0, 0, 0.0, True
        stamps: set[int | None] = set()
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                clean &= (packets > 0 or packet.is_keyframe) and packet.pts is not None and not packet.is_corrupt
                packets += 1
                shown += not (packet.is_discard or _dropped(packet))
                stamps.add(packet.pts)
                if packet.pts is not None and packet.time_base is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except AV_ERRORS as error:
            raise DecodeFailure("corrupt", _line(error)) from error
        _check_complete(container, stream, packets, last)
        if not shown:
            raise DecodeFailure("no_frames", "the video stream holds no frames")
        matroska = "matroska" in container.format.name
        counted = stream.frames == packets or (matroska and clean)
        exact = counted and clean and shown == packets == len(stamps) and (matroska or "mp4" in container.format.name)
        plain = context.name in DECORD_CODECS and context.pix_fmt in DECORD_PIXELS
        large = min(context.height, context.width) >= MIN_SIDE
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        return Probe(shown, counted, context.height, context.width, rate, exact and plain and large)


def _check_complete(container: Any, stream: Any, packets: int, last: float) -> None:
    """Raise DecodeFailure if the header promises clearly more than `packets` that end at `last` seconds."""
    if stream.frames - packets > max(2, (1 - COMPLETE) * stream.frames):
        raise DecodeFailure("truncated", f"{packets} frames found, the header promises {stream.frames}")
    if stream.frames or "matroska" not in container.format.name or container.streams.audio or not container.duration:
        return  # elsewhere the duration is an estimate from the file itself, or that of the sound
    promised = container.duration / av.time_base
    if promised - last > max(0.5, (1 - COMPLETE) * promised):
        raise DecodeFailure("truncated", f"ends at {last:.2f} s, the header promises {promised:.2f} s")


@lru_cache(maxsize=1)
def _hash(path: str, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A path to the video's bytes; from s3:// they are fetched for the while. Raises DecodeFailure."""
    if "://" not in uri:
        if not Path(uri).is_file():
            raise DecodeFailure("missing", f"{uri}: no such file")
        yield Path(uri)
        return
    from pipeline.storage import StorageRefused, download

    with tempfile.NamedTemporaryFile(suffix=Path(uri).suffix) as copy:
        try:
            download(uri, copy)
        except FileNotFoundError as error:
            raise DecodeFailure("missing", _line(error)) from error
        except StorageRefused as error:  # this object; that the bucket can be read, planning has shown
            raise DecodeFailure("refused", str(error)) from error
        copy.flush()
        yield Path(copy.name)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
