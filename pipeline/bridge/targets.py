"""What the bridge's network is asked for, and the forward process that makes its input (eq. 12 and 17)."""

from __future__ import annotations

from torch import Tensor

from pipeline.bridge.schedule import BridgeTable


def q_sample(z0: Tensor, prior: Tensor, noise: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Eq. 12: z_t = a_t z_0 + b_t z_T + c_t eps, all (B, F, C, h, w), at `index` (B,) int64."""
    k = table.at(index, z0)
    return k.a * z0 + k.b * prior + k.c * noise


def eps_psi(z_t: Tensor, z0: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Eq. 17: the network's target eps_psi = (z_t - alpha_t z_0) / sigma_t, (B, F, C, h, w)."""
    k = table.at(index, z_t)
    return (z_t - k.alpha * z0) / k.sigma


def z0_from_eps_psi(z_t: Tensor, eps: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Eq. 17 solved for the clean latent: z_0 = (z_t - sigma_t eps_psi) / alpha_t, (B, F, C, h, w)."""
    k = table.at(index, z_t)
    return (z_t - k.sigma * eps) / k.alpha
