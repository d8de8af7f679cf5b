"""Training losses, one number per sample: the bridge's (eq. 17) and its diffusion counterpart's."""

from collections.abc import Callable

import torch
from torch import Tensor

from .bridge import Bridge
from .targets import Target, q_sample

# denoise(z, t): latent (B, F, C, h, w) and timestep (B,) on the scale 0..999 -> prediction (B, F, C, h, w).
# The closure holds the network's conditions: image, class or text, guidance.
Denoise = Callable[[Tensor, Tensor], Tensor]


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over all but the first dimension, (B,). Raises ValueError if the shapes differ."""
    if prediction.shape != target.shape:
        raise ValueError(f"the network predicts {tuple(prediction.shape)}, expected {tuple(target.shape)}")
    return (prediction - target).square().flatten(1).mean(1)


def bridge_loss(denoise: Denoise, bridge: Bridge, z0: Tensor, prior: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """Return E || denoise - eps_psi ||^2 (eq. 17), (B,). z0, prior, noise (B, F, C, h, w); index (B,) int64.

    With SAF the network sees (z~_t, t~) (eq. 24), and its target stays the same. The bridge names the target and the
    weighting over time (see `targets`).
    """
    z_t = q_sample(z0, prior, noise, bridge.table, index)
    z, t = bridge.network_input(z_t, prior, index)
    error = per_sample_mse(denoise(z, t), bridge.target_of(z_t, z0, noise, index))
    return error * bridge.loss_weight(index).to(error)


def diffusion_loss(
    denoise: Denoise, alphas_cumprod: Tensor, z0: Tensor, index: Tensor, noise: Tensor, target: Target = "noise"
) -> Tensor:
    """Return DDPM's E || denoise - eps ||^2, (B,): z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps at index (B,).

    Target v is sqrt(abar) eps - sqrt(1 - abar) z_0 (Salimans & Ho 2022); target z0 is the clip.
    """
    dtype = torch.promote_types(z0.dtype, torch.float32)
    abar = alphas_cumprod[index].view(-1, *(1,) * (z0.dim() - 1))
    signal, deviation = (root.sqrt().to(z0.device, dtype) for root in (abar, 1 - abar))
    wanted = z0 if target == "z0" else noise if target == "noise" else signal * noise - deviation * z0
    return per_sample_mse(denoise(signal * z0 + deviation * noise, index.to(z0.device, dtype)), wanted.to(dtype))
