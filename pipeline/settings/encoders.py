"""Sections `vae` and `text`: the frozen networks that turn frames and captions into what the cache holds."""

from typing import Literal

from pydantic import PositiveInt

from .section import Dtype, Section

VAE_DOWNSAMPLING = 8  # pixels of a frame along the side of one latent pixel
LATENT_CHANNELS = 4


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

    @property
    def is_used(self) -> bool:
        """Whether captions are encoded."""
        return self.path is not None

    def without_effect(self, key: str) -> dict[str, str]:
        """Everything else while there is no encoder."""
        if self.is_used:
            return {}
        cause = "with text.path = null; leave it out, or set text.path"
        return dict.fromkeys(("tokenizer", "layer", "max_length", "dtype"), cause)
