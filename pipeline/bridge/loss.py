"""Training losses, one number a sample: the bridge's (eq. 17), and its diffusion counterpart's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .alignment import network_input
from .schedule import BridgeTable
from .targets import Target, Weighting, loss_weight, q_sample, target_of

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
    target: Target = "noise",
    weighting: Weighting = "uniform",
) -> Tensor:
    """E || denoise - eps_psi ||^2 (eq. 17), (B,). z0, prior, noise (B, F, C, h, w); index (B,) int64.

    With `aligned_t` (N,) the network sees (z~_t, t~) (SAF, eq. 24); its target stays the same. `target` names another
    parametrisation than eps_psi, `weighting` the weight over time (see `targets`).
    """
    z_t = q_sample(z0, prior, noise, table, index)
    z, t = network_input(z_t, prior, table, index, aligned_t)
    error = per_sample_mse(denoise(z, t), target_of(target, z_t, z0, noise, table, index))
    return error * loss_weight(target, weighting, table, index).to(error)


def diffusion_loss(
    denoise: Denoise, alphas_cumprod: Tensor, z0: Tensor, index: Tensor, noise: Tensor, target: Target = "noise"
) -> Tensor:
    """DDPM's E || denoise - eps ||^2, (B,): z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps at index (B,).

    target v asks for sqrt(abar) eps - sqrt(1 - abar) z_0 (Salimans & Ho 2022), z0 for the clip.
    """
    dtype = torch.promote_types(z0.dtype, torch.float32)
    abar = alphas_cumprod[index].view(-1, *(1,) * (z0.dim() - 1))
    signal, deviation = (root.sqrt().to(z0.device, dtype) for root in (abar, 1 - abar))
    wanted = z0 if target == "z0" else noise if target == "noise" else signal * noise - deviation * z0
    return per_sample_mse(denoise(signal * z0 + deviation * noise, index.to(z0.device, dtype)), wanted.to(dtype))
