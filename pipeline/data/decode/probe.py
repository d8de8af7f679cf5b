"""VIDEO -> PROBE: read a file's packets, without decoding, and tell which decoders give its right frames."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from .fetch import DecodeFailure, one_line

# Codecs for which the frames after a seek equal those of a sequential decode, measured file by file
# (tests/data/decode/test_decoders.py). decord gives other colours for more than 8 bits, and wrong frames of 4:4:4 after
# a seek past x264's version mark.
CODECS = {
    "decord": {"h264", "hevc", "vp8", "vp9", "mpeg4"},
    "torchcodec": {"h264", "hevc", "vp8", "vp9", "mpeg4", "libdav1d", "av1"},
}
PIXELS = {"yuv420p", "yuvj420p"}
MIN_SIDE = 17  # decord cannot read frames of up to 16 pixels
COMPLETE = 0.9  # a video with a smaller share of the frames that its header promises is truncated
AV_ERRORS = (av.FFmpegError, ValueError, OSError, IndexError, MemoryError)


@dataclass(frozen=True)
class Probe:
    """Facts from the packets of a video's main stream, without decoding."""

    packets: int  # packets with a picture to be shown
    counted: bool  # the header agrees with `packets`; where it does not, only a decode can tell
    height: int  # as coded, before rotation
    width: int
    fps: float
    right: frozenset[str]  # decoders whose frames are right after a seek, by its timestamps, codec and container


@lru_cache(maxsize=1)  # the clips of one video come one after another
def probe_packets(path: str, uri: str, size: int) -> Probe:
    """Read the packets of the file, of `size` bytes and from `uri`, without decoding them. Raises DecodeFailure."""
    with opened(Path(path)) as (container, stream):
        context = stream.codec_context
        packets, shown, last, clean = 0, 0, 0.0, True
        stamps: set[int | None] = set()
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                clean &= (packets > 0 or packet.is_keyframe) and packet.pts is not None and not packet.is_corrupt
                packets += 1
                shown += not (packet.is_discard or dropped(packet))
                stamps.add(packet.pts)
                if packet.pts is not None and packet.time_base is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except AV_ERRORS as error:
            raise DecodeFailure("corrupt", one_line(error)) from error
        _check_complete(container, stream, packets, last)
        if not shown:
            raise DecodeFailure("no_frames", "the video stream holds no frames")
        matroska = "matroska" in container.format.name
        counted = stream.frames == packets or (matroska and clean)
        exact = counted and clean and shown == packets == len(stamps) and (matroska or "mp4" in container.format.name)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        right = frozenset(name for name in CODECS if exact and _plain(name, context))
        return Probe(shown, counted, context.height, context.width, rate, right)


def _plain(decoder: str, context: Any) -> bool:
    """Whether the decoder gives right pictures of this codec, colour format and size."""
    large = decoder != "decord" or min(context.height, context.width) >= MIN_SIDE
    return context.name in CODECS[decoder] and context.pix_fmt in PIXELS and large


def _check_complete(container: Any, stream: Any, packets: int, last: float) -> None:
    """Raise DecodeFailure if the header promises clearly more than `packets` that end at `last` seconds."""
    if stream.frames - packets > max(2, (1 - COMPLETE) * stream.frames):
        raise DecodeFailure("truncated", f"{packets} frames found, the header promises {stream.frames}")
    if stream.frames or "matroska" not in container.format.name or container.streams.audio or not container.duration:
        return  # elsewhere the duration is an estimate from the file itself, or that of the sound
    promised = container.duration / av.time_base
    if promised - last > max(0.5, (1 - COMPLETE) * promised):
        raise DecodeFailure("truncated", f"ends at {last:.2f} s, the header promises {promised:.2f} s")


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and its main video stream. Errors of FFmpeg become DecodeFailure."""
    av.logging.set_level(None)
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except AV_ERRORS as error:
        raise DecodeFailure("unreadable", one_line(error)) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise DecodeFailure("no_video", f"no video stream among {len(container.streams)}")
        if stream.codec_context is None:
            raise DecodeFailure("unsupported", "no decoder for the video stream")
        yield container, stream


def dropped(packet: av.Packet) -> bool:
    """XviD fills the place of a frame that it drops with one byte; FFmpeg passes over it, PyAV raises."""
    return packet.size == 1
