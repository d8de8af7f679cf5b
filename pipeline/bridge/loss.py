"""Training losses, one number a sample: the bridge's (eq. 17), and its diffusion counterpart's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.bridge.alignment import network_input
from pipeline.bridge.schedule import BridgeTable
from pipeline.bridge.targets import eps_psi, q_sample

# denoise(z, t): latent (B, F, C, h, w) and timestep (B,) on the scale 0..999 -> prediction (B, F, C, h, w).
# The closure holds whatever conditions the network: image, class or text, guidance.
Denoise = Callable[[Tensor, Tensor], Tensor]


def per_sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all but the first dimension, (B,)."""
    if prediction.shape != target.shape:
        raise ValueError(f"the network predicts {tuple(prediction.shape)}, expected {tuple(target.shape)}")
    return (prediction - target).square().flatten(1).mean(1)


def bridge_loss(
    denoise: Denoise,
    table: BridgeTable,
    z0: Tensor,
    prior: Tensor,
    index: Tensor,
    noise: Tensor,
    aligned_t: Tensor | None = None,
) -> Tensor:
    """E || denoise - eps_psi ||^2 (eq. 17), (B,). z0, prior, noise (B, F, C, h, w); index (B,) int64.

    With `aligned_t` (N,) the network sees (z~_t, t~) (SAF, eq. 24); its target stays the same.
    """
    z_t = q_sample(z0, prior, noise, table, index)
    z, t = network_input(z_t, prior, table, index, aligned_t)
    return per_sample_mse(denoise(z, t), eps_psi(z_t, z0, table, index))


def diffusion_loss(denoise: Denoise, alphas_cumprod: Tensor, z0: Tensor, index: Tensor, noise: Tensor) -> Tensor:
    """DDPM's E || denoise - eps ||^2, (B,): z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps at index (B,)."""
    dtype = torch.promote_types(z0.dtype, torch.float32)
    abar = alphas_cumprod[index].view(-1, *(1,) * (z0.dim() - 1))
    signal, deviation = (root.sqrt().to(z0.device, dtype) for root in (abar, 1 - abar))
    return per_sample_mse(denoise(signal * z0 + deviation * noise, index.to(z0.device, dtype)), noise.to(dtype))
