"""CLIP -> FRAMES: decord and PyAV behind one function. Runs in a child process (isolation.py), so it imports little.

Right frames come first: frame i of a video is the i-th picture that a sequential decode of the whole stream gives.
PyAV, read in sequence, is that by definition. decord seeks, which is faster in long videos, but it is wrong where
timestamps are missing or frames are dropped, so `auto` takes it only for files whose packets rule that out.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from pipeline.data.clips import clip_key, fitting_stride, frames_needed, resize_and_crop, window_indices, window_starts

if TYPE_CHECKING:
    from pipeline.config import DataSettings
    from pipeline.schema import ClipSpan, PlannedClip

# Where decord's frames equal a sequential decode, measured file by file (tests/data/test_decode.py).
DECORD_FORMATS = {"mov", "mp4", "matroska", "webm"}
DECORD_CODECS = {"h264", "hevc", "vp8", "vp9", "mpeg4"}
MIN_SIDE = 17  # decord cannot read frames of up to 16 pixels
COMPLETE = 0.9  # a video with fewer of the frames that its header promises is truncated
AV_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError, MemoryError)


class DecodeFailure(ValueError):
    """A clip that cannot be made. `reason` is one of a few words that rejects are counted by; `detail` is one line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]


@dataclass(frozen=True)
class Probe:
    """What the packets of a video's main stream tell without decoding."""

    packets: int  # that carry a picture to be shown
    promised: int  # frames that the header speaks of; 0: none given
    height: int  # as coded, before rotation
    width: int
    fps: float
    seekable: bool  # timestamps, codec and container are such that decord's frames are right


def decode_clip(planned: "PlannedClip", data: "DataSettings") -> tuple[np.ndarray, "ClipSpan"]:
    """Frames uint8 (F, H, W, 3) of one planned clip, and where they lie in the video. Raises DecodeFailure."""
    with local_file(planned["uri"]) as path:
        source_hash = _hash(str(path), planned["size"])
        probe = _probe(str(path), planned["size"])
        if probe.height * probe.width > data.max_pixels:
            raise DecodeFailure(
                "too_large", f"frames of {probe.width} x {probe.height}, more than data.max_pixels = {data.max_pixels}"
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
    """One clip of one video: its span for a given number of source frames, and its frames by either decoder."""

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
        """The frames, or None if decord fails or disagrees with the packets and `fall_back` allows another decoder."""
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            # one thread: two gain 2-7 %, two processes of one thread 42-58 %
            reader = decord.VideoReader(str(self.path), num_threads=1)
            if fall_back and len(reader) != self.probe.packets:
                return None
            frames = []
            for index in self.place(len(reader)):
                frame = reader[index].asnumpy()
                frames.append(self.shrink(frame))
            return frames
        except (RuntimeError, IndexError, decord.DECORDError, decord.DECORDLimitReachedError) as error:
            if fall_back:
                return None
            raise DecodeFailure("unreadable", f"decord: {error}") from error

    def by_pyav(self) -> list[np.ndarray]:
        """The frames, from a sequential decode up to the last of them.

        The packets say how many frames to expect, which places the window. Where that was wrong, the decode is run
        once more with the number of frames that it gave.
        """
        probe = self.probe
        expected = probe.packets
        if probe.promised and probe.promised != probe.packets:
            expected = sum(1 for _ in _pictures(self.path))
        for attempt in range(2):
            _check_complete(expected, probe.promised)
            indices = self.place(expected)
            frames, seen = self._collect(set(indices), indices[-1])
            if len(frames) == len(indices):
                return frames
            assert attempt == 0, f"{self.path}: {seen} frames, then fewer"
            expected = seen
        raise AssertionError("unreachable: the second decode has all its frames or none is expected")

    def _collect(self, wanted: set[int], last: int) -> tuple[list[np.ndarray], int]:
        """The wanted frames in order, and the number of frames seen."""
        frames: list[np.ndarray] = []
        seen = 0
        for picture in _pictures(self.path):
            if seen in wanted:
                frames.append(self.shrink(_upright(picture, self.data.max_pixels)))
            seen += 1
            if seen > last:
                break
        return frames, seen

    def shrink(self, frame: np.ndarray) -> np.ndarray:
        self.source_size = (frame.shape[0], frame.shape[1])
        return resize_and_crop(frame, self.data.height, self.data.width)


def _check_complete(found: int, promised: int) -> None:
    if found < COMPLETE * promised and promised - found > 2:
        raise DecodeFailure("truncated", f"{found} frames found, the header promises {promised}")


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
        pictures = container.decode(stream)
        while True:
            try:
                picture = next(pictures, None)
            except AV_ERRORS as error:
                raise DecodeFailure("corrupt", _line(error)) from error
            if picture is None:
                return
            yield picture


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
    """Read the packets without decoding them. Raises DecodeFailure."""
    with _opened(Path(path)) as (container, stream):
        context = stream.codec_context
        rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        packets, shown, stamps, clean = 0, 0, set(), True
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                clean &= packets > 0 or packet.is_keyframe
                clean &= packet.pts is not None and not packet.is_corrupt and not packet.is_discard
                packets += 1
                shown += not packet.is_discard
                stamps.add(packet.pts)
        except AV_ERRORS as error:
            raise DecodeFailure("corrupt", _line(error)) from error
        if not shown:
            raise DecodeFailure("no_frames", "the video stream holds no frames")
        names = set(container.format.name.split(","))
        seekable = (
            clean
            and len(stamps) == packets
            and bool(names & DECORD_FORMATS)
            and context.name in DECORD_CODECS
            and min(context.height, context.width) >= MIN_SIDE
            and stream.frames in (0, shown)
        )
        return Probe(shown, stream.frames, context.height, context.width, float(rate), seekable)


@lru_cache(maxsize=1)
def _hash(path: str, size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A path to the video's bytes; what lies on s3:// is fetched first and removed afterwards. Raises DecodeFailure."""
    if "://" not in uri:
        if not Path(uri).is_file():
            raise DecodeFailure("missing", f"{uri}: no such file")
        yield Path(uri)
        return
    from pipeline.storage import resolve

    with tempfile.NamedTemporaryFile(suffix=Path(uri).suffix) as copy:
        filesystem, inner = resolve(uri)
        try:
            with filesystem.open_input_stream(inner) as source:
                while chunk := source.read(8 << 20):
                    copy.write(chunk)
        except FileNotFoundError as error:
            raise DecodeFailure("missing", _line(error)) from error
        copy.flush()
        yield Path(copy.name)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
