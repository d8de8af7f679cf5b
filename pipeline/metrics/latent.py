"""How near latents are to those of the true clip."""

from torch import Tensor


def latent_error(latents: Tensor, true: Tensor) -> float:
    """Mean squared error over all frames of scaled latents (F, C, h, w)."""
    if latents.shape != true.shape:
        raise ValueError(f"latents of {tuple(latents.shape)} compared with {tuple(true.shape)}")
    return float((latents.double() - true.double()).square().mean())
