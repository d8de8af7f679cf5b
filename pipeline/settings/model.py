"""Section `model`: the backbone of the video network, its size, and its inputs besides the noisy clip."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from .section import BelowOne, Problems, Section

Backbone = Literal["latte", "unet3d", "cogvideox"]


class ModelSettings(Section):
    """The size of a Latte, by name or by its numbers. As `prior.model`: the neural prior's, which has no conditions."""

    size: Literal["S", "B", "L", "XL"] | None
    hidden_size: PositiveInt | None
    depth: PositiveInt | None
    num_heads: PositiveInt | None
    patch_size: PositiveInt

    def contradictions(self) -> Problems:
        """The size is given once, as a name or as three numbers that fit each other."""
        given = {"hidden_size": self.hidden_size, "depth": self.depth, "num_heads": self.num_heads}
        named = [name for name, value in given.items() if value is not None]
        missing = [f"model.{name}" for name, value in given.items() if value is None]
        if self.size is not None and named:
            yield f"model.size = {self.size} already fixes {', '.join(named)}; set model.size null to choose them"
        if self.size is None and missing:
            yield f"model.size is null, so {', '.join(missing)} must be set"
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            yield f"model.hidden_size = {self.hidden_size} is not a multiple of model.num_heads = {self.num_heads}"
        if self.depth and self.depth % 2:
            yield f"model.depth = {self.depth} is odd; spatial and temporal blocks come in pairs; use {self.depth + 1}"


class UNet3DSettings(Section):
    """The size of VideoCrafter's and DynamiCrafter's U-Net, and its reader of image tokens."""

    model_channels: Annotated[int, Field(gt=0, multiple_of=32)]  # its group norms have 32 groups
    channel_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    attention_levels: tuple[NonNegativeInt, ...]
    head_size: PositiveInt
    dropout: BelowOne
    image_encoder: str | None
    image_width: PositiveInt
    resampler_size: PositiveInt
    resampler_depth: PositiveInt
    resampler_heads: PositiveInt
    resampler_head_size: PositiveInt
    resampler_queries: PositiveInt

    def contradictions(self) -> Problems:
        """Channels divide into heads."""
        if self.model_channels % self.head_size:
            channels = f"model.unet3d.model_channels = {self.model_channels}"
            yield f"{channels} is not a multiple of model.unet3d.head_size = {self.head_size}"


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
    """The video network: its backbone, its size, and its inputs besides the noisy clip."""

    image_condition: Literal["frame", "channels", "none"]
    prior_condition: bool
    backbone: Backbone
    unet3d: UNet3DSettings | None
    cogvideox: CogVideoXSettings | None

    def contradictions(self) -> Problems:
        """Conditions and sizes fit the backbone."""
        yield from super().contradictions()
        backbone, condition = self.backbone, self.image_condition
        wanted = ("frame", "none") if backbone == "latte" else ("channels",)
        if condition not in wanted:
            yield f"model.image_condition = {condition}: model.backbone = {backbone} takes {' or '.join(wanted)}"
        if backbone != "latte" and getattr(self, backbone) is None:
            yield f"model.{backbone} = null: model.backbone = {backbone} needs its sizes there"
        if backbone != "latte" and self.prior_condition:
            yield "model.prior_condition = true applies to latte only; set it false, or model.backbone latte"
