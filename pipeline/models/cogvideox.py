"""CogVideoX (Yang et al. 2024) as an image-to-video network: diffusers' transformer with twice the input channels.

The latent and what is known of each frame (the image latent, replicated) lie side by side on the channels, as in the
authors' fine-tuning of CogVideoX-2B; the new half of the patch embedding starts at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


def build_transformer(config: Mapping[str, Any]) -> CogVideoXTransformer3DModel:
    """The transformer of diffusers' keyword arguments `config`, with weights from diffusers' own initialisation."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        return CogVideoXTransformer3DModel(**config)


def initialise_transformer(transformer: CogVideoXTransformer3DModel, seed: int) -> None:
    """Fresh weights from the seed alone: each layer's own initialisation. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in transformer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
