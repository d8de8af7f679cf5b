"""A pre-trained diffusion model as BIVDiff needs it: DDIM in both directions, whatever the network predicts.

Latents are (B, F, C, h, w) throughout; an image model sees the F frames of a clip as so many images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..bridge.loss import Denoise
from ..bridge.samplers import Clean, check_descending, ddim, diffusion_clean
from ..bridge.targets import Target


class Asked(NamedTuple):
    """What is asked of a model; without arguments: nothing."""

    prompt: str = ""
    negative: str = ""
    guidance: float = 1.0


@dataclass(frozen=True)
class LatentDiffusion:
    """A model of images or of clips, and the schedule that it was trained on."""

    name: str  # where it comes from, for messages
    conditioned: Callable[[Asked, Tensor], Denoise]  # by what is asked, and a first frame (B, C, h, w)
    target: Target
    alphas_cumprod: Tensor  # (N,) float64, on the CPU
    indices: Callable[[int], Tensor]  # of so many steps, descending
    scaling_factor: float  # its latents are the VAE's times this
    channels: int
    shown_image: bool = False  # whether it is an image-to-video model

    def invert(self, z0: Tensor, steps: int) -> Tensor:
        """z_T of a clip, by the empty prompt and without guidance."""
        return ddim_invert(self._clean(Asked(), z0), self.alphas_cumprod, z0, self.indices(steps))

    def sample(self, z_T: Tensor, asked: Asked, steps: int, like: Tensor) -> Tensor:
        """The clip that DDIM makes of z_T; a model that is shown a first frame is shown that of `like`."""
        return ddim(self._clean(asked, like), self.alphas_cumprod, z_T, self.indices(steps))

    def last(self, steps: int) -> Tensor:
        """alphas_cumprod at z_T, 0-d."""
        return self.alphas_cumprod[self.indices(steps)[0]]

    def _clean(self, asked: Asked, like: Tensor) -> Clean:
        return diffusion_clean(self.conditioned(asked, like[:, 0]), self.alphas_cumprod, self.target)


@torch.no_grad()
def ddim_invert(clean: Clean, alphas_cumprod: Tensor, z_0: Tensor, indices: Tensor) -> Tensor:
    """The noise z_T from which `samplers.ddim` returns to z_0 (B, F, C, h, w) along the same `indices`.

    Every step of DDIM from s to t is undone in turn: z_s = alpha_s (z_t - sigma_t eps)/alpha_t + sigma_s eps. With
    eps(z_s, s) that would be exact; eps(z_t, s) is what there is, so a round trip errs to the first order of a step.
    """
    check_descending(indices, len(alphas_cumprod))
    z = z_0.to(torch.promote_types(z_0.dtype, torch.float32))
    abar_t = torch.ones((), dtype=alphas_cumprod.dtype)
    for s in indices.flip(0):
        abar_s = alphas_cumprod[s]
        eps = (z - abar_s.sqrt() * clean(z, s)) / (1 - abar_s).sqrt()
        z = (abar_s / abar_t).sqrt() * (z - (1 - abar_t).sqrt() * eps) + (1 - abar_s).sqrt() * eps
        abar_t = abar_s
    return z
