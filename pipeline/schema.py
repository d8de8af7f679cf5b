"""Every row and batch that crosses a module boundary: names, types, shapes and units.

    PlannedClip -> DecodedClip -> EncodedClip -> ManifestRow (a shard's tar and manifest part) -> LatentBatch
                \\-> RejectedClip (anything that could not be used, with stage and reason)

Rows are typed dictionaries, because Ray Data moves dictionaries: mypy knows their keys, and the Arrow schemas below
fix how they lie in Parquet. Legend of shapes: B clips, F frames, C latent channels, h w latent, H W pixels.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa

if TYPE_CHECKING:
    import torch  # decoding workers read this file and need no torch

TRAIN, TEST = "train", "test"


class PlannedClip(TypedDict):
    """One clip to be made, known before its video is opened. IDENTITY says what identifies it on resume."""

    uri: str  # absolute path or s3:// address; of a video in a tar: TAR#MEMBER@OFFSET+SIZE
    video: str  # path relative to the source's root
    size: int  # bytes of the file; 0: listed, but not there; -1: not known
    split: str  # train | test
    label: str  # class name, "" if the source has none
    caption: str  # "" if the source has none
    ordinal: int  # which of the video's windows, 0 .. clips - 1
    clips: int  # windows planned of this video
    flip: bool  # mirrored left to right


class ClipSpan(TypedDict):
    """Where a decoded clip lies in its video."""

    key: str  # from path, content and span; unique in a cache, stable over runs, safe as a file name
    source_hash: str  # BLAKE2b-128 of the file, hex
    start: int  # first source frame
    stride: int  # source frames from one clip frame to the next; rounded down where the window is not uniform
    span: int  # source frames from the first to the last, both counted
    source_frames: int  # frames in the video
    source_fps: float
    source_height: int  # pixels, after rotation
    source_width: int
    decoder: str  # decord | pyav | torchcodec


class RejectedClip(TypedDict):
    """A clip that could not be used."""

    uri: str
    video: str
    size: int
    split: str
    ordinal: int
    flip: bool
    stage: str  # decode | encode
    reason: str  # short and typed: too_short, unreadable, timeout, crashed, too_large, truncated, ...
    detail: str  # one line of the underlying error
    attempts: int


class ManifestRow(PlannedClip, ClipSpan):
    """A clip in a committed shard."""

    shard: str  # file name in shards/
    offset: int  # first byte of the latent's .npy in the tar
    length: int  # bytes of the .npy
    checksum: str  # CRC-32 of those bytes, hex
    text_offset: int | None  # the same of the caption's embedding; null without one
    text_length: int | None
    text_checksum: str | None


_PLANNED_FIELDS = [
    ("uri", pa.string()),
    ("video", pa.string()),
    ("size", pa.int64()),
    ("split", pa.string()),
    ("label", pa.string()),
    ("caption", pa.string()),
    ("ordinal", pa.int32()),
    ("clips", pa.int32()),
    ("flip", pa.bool_()),
]
PLAN_SCHEMA = pa.schema(_PLANNED_FIELDS)
IDENTITY = ["video", "size", "ordinal", "flip"]  # of a planned clip, before and after it is made
_SPAN_FIELDS = [
    ("key", pa.string()),
    ("source_hash", pa.string()),
    ("start", pa.int32()),
    ("stride", pa.int32()),
    ("span", pa.int32()),
    ("source_frames", pa.int32()),
    ("source_fps", pa.float32()),
    ("source_height", pa.int32()),
    ("source_width", pa.int32()),
    ("decoder", pa.string()),
]
_FAILURE_FIELDS = [("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("attempts", pa.int32())]
# Between the stages of the cache, where a clip that failed travels on as a row: its payload, and its span if it has
# none, are null; of a good clip `reason` is null.
DECODED_SCHEMA = pa.schema(
    [*_PLANNED_FIELDS, *_SPAN_FIELDS, ("frames", pa.large_binary()), *_FAILURE_FIELDS]  # uint8 (F, H, W, 3)
)
ENCODED_SCHEMA = pa.schema(
    [
        *_PLANNED_FIELDS,
        *_SPAN_FIELDS,
        ("latent", pa.large_binary()),  # a .npy file, see LATENT_MEMBER
        ("text", pa.large_binary()),  # a .npy file, see TEXT_MEMBER; null without a text encoder
        *_FAILURE_FIELDS,
    ]
)
MANIFEST_SCHEMA = pa.schema(
    [
        *_PLANNED_FIELDS,
        *_SPAN_FIELDS,
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("checksum", pa.string()),
        ("text_offset", pa.int64()),
        ("text_length", pa.int64()),
        ("text_checksum", pa.string()),
    ]
)
_REJECTED_NAMES = ("uri", "video", "size", "split", "ordinal", "flip")
REJECTED_SCHEMA = pa.schema([*map(PLAN_SCHEMA.field, _REJECTED_NAMES), *_FAILURE_FIELDS])

# Members of one sample in a shard: KEY.latent.npy, KEY.text.npy where captions are embedded, and KEY.json
LATENT_MEMBER = "latent.npy"  # float16 (2, F, C, h, w): posterior mean and log-variance, unscaled
TEXT_MEMBER = "text.npy"  # float16 (tokens, width): the caption's embedding
META_MEMBER = "json"
NULL_TEXT = "null_text.npy"  # beside cache.json: float16 (tokens, width), the embedding of the empty caption


@dataclass(frozen=True)
class LatentBatch:
    """What training sees. z0 is a scaled sample of the posterior; its first frame is the image latent."""

    keys: list[str]
    z0: "torch.Tensor"  # (B, F, C, h, w) float32
    label: "torch.Tensor"  # (B,) int64; the null class where there is none
    stride: "torch.Tensor"  # (B,) float32: source frames from one frame of the clip to the next
    image_shown: "torch.Tensor"  # (B,) bool: False where image tokens are left out, for classifier-free guidance
    text: "torch.Tensor | None" = None  # (B, tokens, width) float32, of the empty caption where it is left out
    prior: "torch.Tensor | None" = None  # (B, F, C, h, w) float32: F_eta's cached output, with bridge.cached_prior

    @property
    def image_latent(self) -> "torch.Tensor":
        """(B, C, h, w)"""
        return self.z0[:, 0]

    def to(self, device: "torch.device") -> "LatentBatch":
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **moved)
