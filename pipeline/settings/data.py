"""Sections `data` and `cache`: from videos to clips, and where the clips' latents are kept."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from .encoders import VAE_DOWNSAMPLING
from .section import Fraction, NonNegative, Section


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
    stride: int | tuple[int, int]
    clips_per_video: PositiveInt
    clip_starts: Literal["even", "random"]
    clip_seed: Annotated[int, Field(ge=0)]
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

    def without_effect(self, key: str) -> dict[str, str]:
        """Settings of another source, and the seed of draws that are not made."""
        found = {}
        if self.source != "ucf101":
            found["split_list"] = f"with data.source = {self.source}; it chooses among ucf101's lists; leave it out"
        if self.source in ("ucf101", "msrvtt"):
            found["holdout_fraction"] = f"with data.source = {self.source}, which has a split of its own; leave it out"
        if self.source in ("folder", "webdataset"):
            found["annotations"] = f"with data.source = {self.source}, which reads no annotations; leave it out"
        if isinstance(self.stride, int) and self.clip_starts == "even":
            cause = f"with data.stride = {self.stride} and data.clip_starts = even, which draw nothing"
            found["clip_seed"] = f"{cause}; leave it out, or set data.clip_starts random"
        return found

    @field_validator("stride", mode="before")
    @classmethod
    def _check_stride(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value, value]
        if not all(type(number) is int and number >= 1 for number in numbers) or numbers[0] > numbers[1]:
            raise ValueError(f"data.stride = {value!r}: expected a whole number from 1, or a range such as [1, 6]")
        return value

    @model_validator(mode="after")
    def _check_whole_latents(self) -> Self:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % VAE_DOWNSAMPLING:
                down = value - value % VAE_DOWNSAMPLING
                raise ValueError(
                    f"data.{name} = {value} is not a multiple of {VAE_DOWNSAMPLING}, the VAE's downsampling; "
                    f"use {max(down, VAE_DOWNSAMPLING)} or {down + VAE_DOWNSAMPLING}"
                )
        return self


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
    gc_after_hours: NonNegative
    retry_rejects: Literal["all"] | list[str]

    def without_effect(self, key: str) -> dict[str, str]:
        """The size of a local copy that is not kept."""
        if self.local_path is None:
            return {"local_gb": "with cache.local_path = null; leave it out, or set cache.local_path"}
        return {}
