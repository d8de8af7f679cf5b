"""VideoCrafter1 and DynamiCrafter: U-Net and resampler under one roof, and their published checkpoints.

A checkpoint of either holds the whole of a latent diffusion model: `model.diffusion_model.*` (the U-Net),
`image_proj_model.*` (DynamiCrafter's resampler), `first_stage_model.*` (the VAE, see vae_files), `cond_stage_model.*` and
`embedder.*` (open_clip's text and image encoder, see open_clip). The module here has these very names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.models.resampler import Resampler
from pipeline.models.unet3d import UNet3D
from pipeline.models.weights import State, WeightsMismatch

UNET, RESAMPLER = "model.diffusion_model.", "image_proj_model."
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
RENAMED = {"framestride_embed.": "fps_embedding."}  # in DynamiCrafter's checkpoint for 256 x 256
# What a text-to-video model lacks: all names with one of these parts are new, or all are there
NEW = ("fps_embedding.", ".to_k_ip.", ".to_v_ip.", ".alpha", RESAMPLER)


class VideoCrafter(nn.Module):
    """The trained part of an image-to-video model: the U-Net, and the resampler where it attends over image tokens."""

    def __init__(self, unet: UNet3D, resampler: Resampler | None) -> None:
        super().__init__()
        if unet.image_tokens != (resampler is not None):
            raise ValueError("a U-Net that attends over image tokens needs a resampler, and no other does")
        self.model = nn.ModuleDict({"diffusion_model": unet})
        self.image_proj_model = resampler

    @property
    def unet(self) -> UNet3D:
        unet = self.model["diffusion_model"]
        assert isinstance(unet, UNet3D)
        return unet

    def initialise(self, seed: int) -> None:
        """Fresh weights, from the seed alone."""
        self.unet.initialise(seed)
        if self.image_proj_model is not None:
            self.image_proj_model.initialise(seed)

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, stride: Tensor, image_features: Tensor | None = None
    ) -> Tensor:
        """As UNet3D's, with image_features (B, L, D) of the image encoder instead of tokens of each frame."""
        image = None
        if self.image_proj_model is not None and image_features is not None:
            image = self.image_proj_model(image_features)
        out: Tensor = self.unet(x, t, text, stride, image)
        return out


def state_from_published(state: Mapping[str, Tensor], target: VideoCrafter) -> State:
    """What `target` starts from, of a checkpoint of VideoCrafter/Text2Video-256 or of DynamiCrafter.

    Other parts of the checkpoint are left out. The first convolution is widened with zeros for the image's channels
    (4 -> 8), which so change nothing at first; what a text-to-video model does not have (NEW) keeps the target's own
    initial weights, which change nothing either. Whatever else is missing or too much is left so, for `load_strict`
    to report. Raises WeightsMismatch where the file holds no U-Net.
    """
    found: State = {}
    for name, value in state.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name.startswith((UNET, RESAMPLER)):
            found[name] = value
    if FIRST not in found:
        raise WeightsMismatch(
            f"{FIRST} is missing: not a checkpoint of VideoCrafter or DynamiCrafter (it has {', '.join(list(state)[:3])})"
        )
    own = target.state_dict()
    extra = own[FIRST].shape[1] - found[FIRST].shape[1]
    if extra > 0:
        kernel = found[FIRST]
        zeros = kernel.new_zeros(kernel.shape[0], extra, *kernel.shape[2:])
        found[FIRST] = torch.cat([kernel, zeros], dim=1)
    for part in NEW:
        if not any(part in name for name in found):
            found |= {name: value for name, value in own.items() if part in name}
    return found
