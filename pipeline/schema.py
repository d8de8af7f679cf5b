"""Every row and batch that crosses a module boundary: names, types, shapes and units.

    PlannedClip -> decoded clip -> encoded clip -> ManifestRow (a shard's tar and manifest part) -> LatentBatch
                \\-> a row of REJECTED_SCHEMA (a clip that could not be used, with stage and reason)

Rows are typed dictionaries, because Ray Data moves dictionaries. mypy knows their keys, and each key's Arrow type says
how it lies in Parquet. Legend of shapes: B clips, F frames, C latent channels, h w latent, H W pixels.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypedDict, get_type_hints

import pyarrow as pa

if TYPE_CHECKING:
    import torch  # decoding workers read this file and need no torch

TRAIN, TEST = "train", "test"
IDENTITY = ["video", "size", "ordinal", "flip"]  # identifies a planned clip, before and after it is made

Int32 = Annotated[int, pa.int32()]
Int64 = Annotated[int, pa.int64()]
Float32 = Annotated[float, pa.float32()]
Text = Annotated[str, pa.string()]
Flag = Annotated[bool, pa.bool_()]


class PlannedClip(TypedDict):
    """One clip to be made, known before its video is opened."""

    uri: Text  # absolute path or s3:// address; of a video in a tar: TAR#MEMBER@OFFSET+SIZE
    video: Text  # path relative to the source's root
    size: Int64  # bytes of the file; 0: listed, but not there; -1: not known
    split: Text  # train | test
    label: Text  # class name, "" if the source has none
    caption: Text  # "" if the source has none
    ordinal: Int32  # which of the video's windows, 0 .. clips - 1
    clips: Int32  # windows planned of this video
    flip: Flag  # mirrored left to right


class ClipSpan(TypedDict):
    """Where a decoded clip lies in its video."""

    key: Text  # from path, content and span; unique in a cache, stable over runs, safe as a file name
    source_hash: Text  # BLAKE2b-128 of the file, hex
    start: Int32  # first source frame
    stride: Int32  # source frames from one clip frame to the next; rounded down where the window is not uniform
    span: Int32  # source frames from the first to the last, both counted
    source_frames: Int32  # frames in the video
    source_fps: Float32
    source_height: Int32  # pixels, after rotation
    source_width: Int32
    decoder: Text  # decord | pyav | torchcodec


class Failure(TypedDict):
    """Why a clip could not be used."""

    stage: Text  # decode | encode
    reason: Text  # short and typed: too_short, unreadable, timeout, crashed, too_large, truncated, ...
    detail: Text  # one line of the underlying error
    attempts: Int32


class ManifestRow(PlannedClip, ClipSpan):
    """A clip in a committed shard."""

    shard: Text  # file name in shards/
    offset: Int64  # first byte of the latent's .npy in the tar
    length: Int64  # bytes of the .npy
    checksum: Text  # CRC-32 of those bytes, hex
    text_offset: Annotated[int | None, pa.int64()]  # the same for the caption's embedding; null without one
    text_length: Annotated[int | None, pa.int64()]
    text_checksum: Annotated[str | None, pa.string()]


def _fields(row: type) -> list[pa.Field]:
    """The Arrow fields of a typed dictionary."""
    return [pa.field(name, hint.__metadata__[0]) for name, hint in get_type_hints(row, include_extras=True).items()]


PLAN_SCHEMA = pa.schema(_fields(PlannedClip))
MANIFEST_SCHEMA = pa.schema(_fields(ManifestRow))
REJECTED_SCHEMA = pa.schema(
    [*(PLAN_SCHEMA.field(name) for name in ("uri", "video", "size", "split", "ordinal", "flip")), *_fields(Failure)]
)
# A clip that failed travels on through the stages of the cache: its payload is null, and so is its span if it has none.
# `reason` is null for a good clip.
DECODED_SCHEMA = pa.schema(
    [*_fields(PlannedClip), *_fields(ClipSpan), ("frames", pa.large_binary()), *_fields(Failure)]  # uint8 (F, H, W, 3)
)
ENCODED_SCHEMA = pa.schema(
    [
        *_fields(PlannedClip),
        *_fields(ClipSpan),
        ("latent", pa.large_binary()),  # a .npy file, see LATENT_MEMBER
        ("text", pa.large_binary()),  # a .npy file, see TEXT_MEMBER; null without a text encoder
        *_fields(Failure),
    ]
)

# Members of one sample in a shard: KEY.latent.npy, KEY.text.npy where captions are embedded, and KEY.json
LATENT_MEMBER = "latent.npy"  # float16 (2, F, C, h, w): posterior mean and log-variance, unscaled
TEXT_MEMBER = "text.npy"  # float16 (tokens, width): the caption's embedding
META_MEMBER = "json"
NULL_TEXT = "null_text.npy"  # beside cache.json: float16 (tokens, width), the embedding of the empty caption


@dataclass(frozen=True)
class LatentBatch:
    """A batch as training sees it. z0 is a scaled sample of the posterior; its first frame is the image latent."""

    keys: list[str]
    z0: "torch.Tensor"  # (B, F, C, h, w) float32
    label: "torch.Tensor"  # (B,) int64; the null class where there is none
    stride: "torch.Tensor"  # (B,) float32: source frames from one frame of the clip to the next
    image_shown: "torch.Tensor"  # (B,) bool: False where image tokens are left out, for classifier-free guidance
    text: "torch.Tensor | None" = None  # (B, tokens, width) float32, of the empty caption where it is left out
    prior: "torch.Tensor | None" = None  # (B, F, C, h, w) float32: F_eta's cached output, with bridge.cached_prior

    @property
    def image_latent(self) -> "torch.Tensor":
        """The first frame of z0, (B, C, h, w)."""
        return self.z0[:, 0]

    def to(self, device: "torch.device") -> "LatentBatch":
        """The same batch on another device."""
        return replace(self, **{name: each.to(device) for name, each in vars(self).items() if hasattr(each, "to")})
