"""Sections `data`, `vae`, `text` and `cache`: from videos to clips, and from clips to cached latents and embeddings."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from .section import Dtype, Fraction, NumberOrRange, Problems, Section

VAE_DOWNSAMPLING = 8  # pixels of a frame along the side of one latent pixel
LATENT_CHANNELS = 4


class DataSettings(Section):
    """Which videos are read, and how clips are cut from them."""

    source: Literal["ucf101", "webvid", "msrvtt", "folder", "webdataset", "manifest"]
    path: str
    online: bool
    annotations: str | None
    split_list: Literal[1, 2, 3]
    holdout_fraction: Fraction
    max_videos: PositiveInt | None
    frames: PositiveInt
    window: Literal["uniform", "ucf101_authors"]
    stride: NumberOrRange
    clips_per_video: PositiveInt
    clip_starts: Literal["even", "random"]
    clip_seed: NonNegativeInt
    flip: bool
    short_video: Literal["reject", "reduce_stride"]
    height: PositiveInt
    width: PositiveInt
    decoder: Literal["auto", "decord", "pyav", "torchcodec"]
    decode_timeout_s: PositiveFloat
    decode_memory_mb: Annotated[int, Field(ge=64)]
    max_pixels: PositiveInt

    @property
    def stride_range(self) -> tuple[int, int]:
        """The smallest and the largest stride of a clip."""
        return (self.stride, self.stride) if isinstance(self.stride, int) else self.stride

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the clips' latents."""
        return self.height // VAE_DOWNSAMPLING, self.width // VAE_DOWNSAMPLING

    def contradictions(self) -> Problems:
        """Frames divide into latent pixels."""
        for name, value in (("height", self.height), ("width", self.width)):
            if rest := value % VAE_DOWNSAMPLING:
                near = f"{max(value - rest, VAE_DOWNSAMPLING)} or {value - rest + VAE_DOWNSAMPLING}"
                yield f"data.{name} = {value} is not a multiple of {VAE_DOWNSAMPLING}, the VAE's factor; use {near}"


class VaeSettings(Section):
    """The VAE that encodes frames to latents and decodes samples to frames."""

    path: str
    dtype: Dtype
    batch_frames: PositiveInt
    compile: bool


class TextSettings(Section):
    """The text encoder of captions."""

    path: str | None
    tokenizer: str | None
    layer: Literal[-1, -2]
    max_length: PositiveInt
    dtype: Dtype


class MixedCache(Section):
    """One of several caches that training draws from, and how often relative to the others."""

    path: Annotated[str, Field(min_length=1)]
    weight: PositiveFloat


class CacheSettings(Section):
    """Where latents are kept, which caches training reads, and when rejected clips fail a job."""

    path: str | None
    mix: list[MixedCache]
    local_path: str | None
    local_gb: PositiveFloat
    shard_clips: PositiveInt
    max_reject_fraction: Fraction
    gc_after_hours: NonNegativeFloat
    retry_rejects: Literal["all"] | list[str]
