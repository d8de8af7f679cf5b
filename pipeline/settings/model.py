"""Section `model`: the backbone of the video network, its size, and what it is shown besides the noisy clip."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .section import BelowOne, Section

Backbone = Literal["latte", "unet3d", "cogvideox"]
REMOVED = ("image_condition", "prior_condition")  # of the neural prior's model


class ModelSettings(Section):
    """The size of a Latte, by name or by its numbers. As `prior.model`: the neural prior's, which has no conditions."""

    size: Literal["S", "B", "L", "XL"] | None
    hidden_size: PositiveInt | None
    depth: PositiveInt | None
    num_heads: PositiveInt | None
    patch_size: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, values: Any) -> Any:
        """Exports of earlier versions say how a neural prior is conditioned, which never had an effect."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if name not in REMOVED or name in cls.model_fields}

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        given = {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
        named = [name for name, value in given.items() if value is not None]
        if self.size is not None and named:
            raise ValueError(
                f"model.size = {self.size} already fixes {', '.join(named)}; set model.size null to choose them"
            )
        if self.size is None:
            missing = [f"model.{name}" for name, value in given.items() if value is None]
            if missing:
                raise ValueError(f"model.size is null, so {', '.join(missing)} must be set")
            self._check_numbers()
        return self

    def _check_numbers(self) -> None:
        assert self.hidden_size and self.num_heads and self.depth
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size = {self.hidden_size} does not divide into model.num_heads = {self.num_heads}"
            )
        if self.depth % 2:
            raise ValueError(
                f"model.depth = {self.depth} is odd, but spatial and temporal blocks come in pairs; "
                f"use {self.depth + 1}"
            )


class UNet3DSettings(Section):
    """The size of VideoCrafter's and DynamiCrafter's U-Net, and its reader of image tokens."""

    model_channels: PositiveInt
    channel_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...]
    head_size: PositiveInt
    dropout: BelowOne
    image_encoder: str | None
    image_width: PositiveInt
    resampler_size: PositiveInt
    resampler_depth: PositiveInt
    resampler_heads: PositiveInt
    resampler_head_size: PositiveInt
    resampler_queries: PositiveInt

    def without_effect(self, key: str) -> dict[str, str]:
        """The reader of image tokens that no encoder makes."""
        if self.image_encoder is not None:
            return {}
        names = [name for name in type(self).model_fields if name.startswith("resampler_")]
        cause = f"with {key}.image_encoder = null; leave it out, or set {key}.image_encoder"
        return dict.fromkeys(("image_width", *names), cause)

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        for name, divisor in (
            ("its group norms' 32", 32),
            (f"model.unet3d.head_size = {self.head_size}", self.head_size),
        ):
            if self.model_channels % divisor:
                raise ValueError(f"model.unet3d.model_channels = {self.model_channels} is no multiple of {name}")
        return self


class CogVideoXSettings(Section):
    """The size of CogVideoX's transformer, under the names of diffusers."""

    num_layers: PositiveInt
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    time_embed_dim: PositiveInt
    sample_width: PositiveInt
    sample_height: PositiveInt
    sample_frames: PositiveInt


class VideoModelSettings(ModelSettings):
    """The video network: a backbone, its size, and what it is shown besides the noisy clip."""

    image_condition: Literal["frame", "channels", "none"]
    prior_condition: bool
    backbone: Backbone
    unet3d: UNet3DSettings | None
    cogvideox: CogVideoXSettings | None

    @property
    def takes_text(self) -> bool:
        """Whether the network reads an embedded caption; Latte reads the class instead."""
        return self.backbone != "latte"

    @property
    def takes_stride(self) -> bool:
        """Whether the network is told how many source frames lie between two frames of the clip."""
        return self.backbone == "unet3d"

    @property
    def takes_image_tokens(self) -> bool:
        """Whether the network attends over tokens of the image."""
        return self.backbone == "unet3d" and self.unet3d is not None and self.unet3d.image_encoder is not None

    def without_effect(self, key: str) -> dict[str, str]:
        """Sizes of the backbones that are not chosen."""
        found = {}
        if self.backbone != "latte":
            cause = f"with {key}.backbone = {self.backbone}, whose sizes are in {key}.{self.backbone}; leave it out"
            unread = ["size", "hidden_size", "depth", "num_heads"]
            found = dict.fromkeys([*unread, *(["patch_size"] if self.backbone == "unet3d" else [])], cause)
        for other in ("unet3d", "cogvideox"):
            sizes = getattr(self, other)
            if sizes is not None and other != self.backbone:
                cause = f"with {key}.backbone = {self.backbone}; leave it out, or set {key}.backbone {other}"
                found |= dict.fromkeys((f"{other}.{name}" for name in type(sizes).model_fields), cause)
        return found

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        wanted = ("frame", "none") if self.backbone == "latte" else ("channels",)
        if self.image_condition not in wanted:
            raise ValueError(
                f"model.image_condition = {self.image_condition}: model.backbone = {self.backbone} takes "
                f"{' or '.join(wanted)}"
            )
        if self.backbone != "latte" and getattr(self, self.backbone) is None:
            raise ValueError(f"model.{self.backbone} = null: model.backbone = {self.backbone} needs its sizes there")
        if self.prior_condition and self.backbone != "latte":
            raise ValueError("model.prior_condition = true is Latte's; set it false, or model.backbone latte")
        return self
