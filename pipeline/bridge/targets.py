"""Targets of the bridge's network, and the forward process that makes its input (eq. 12 and 17).

Three parametrisations of one clean estimate, each with its inversion:
  noise   eps_psi = (z_t - alpha_t z_0) / sigma_t, the paper's (eq. 17)
  v       (a_t eps - c_t z_0) / sqrt(a_t^2 + c_t^2): v of the aligned latent (eq. 24), as CogVideoX was trained
  z0      the clip itself
"""

from typing import Literal

import torch
from torch import Tensor

from .schedule import BridgeTable

Target = Literal["noise", "v", "z0"]
Weighting = Literal["uniform", "noise"]


def q_sample(z0: Tensor, prior: Tensor, noise: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return z_t (eq. 12) = a_t z_0 + b_t z_T + c_t eps, all (B, F, C, h, w), at `index` (B,) int64."""
    k = table.at(index, z0)
    return k.a * z0 + k.b * prior + k.c * noise


def eps_psi(z_t: Tensor, z0: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return the network's target (eq. 17) eps_psi = (z_t - alpha_t z_0) / sigma_t, (B, F, C, h, w)."""
    k = table.at(index, z_t)
    return (z_t - k.alpha * z0) / k.sigma


def z0_from_eps_psi(z_t: Tensor, eps: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Solve eq. 17 for the clean latent: z_0 = (z_t - sigma_t eps_psi) / alpha_t, (B, F, C, h, w)."""
    k = table.at(index, z_t)
    return (z_t - k.sigma * eps) / k.alpha


def bridge_v(z0: Tensor, noise: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return v of the aligned latent: (a_t eps - c_t z_0) / sqrt(a_t^2 + c_t^2), (B, F, C, h, w)."""
    k = table.at(index, z0)
    return (k.a * noise - k.c * z0) / torch.hypot(k.a, k.c)


def z0_from_v(z_t: Tensor, prior: Tensor, v: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Solve `bridge_v` for z_0 = (a_t z~_t - c_t v) / sqrt(a_t^2 + c_t^2), z~_t as in eq. 24."""
    k = table.at(index, z_t)
    norm = torch.hypot(k.a, k.c)
    return (k.a * (z_t - k.b * prior) / norm - k.c * v) / norm


def h_transform(z_t: Tensor, prior: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return h (eq. 15, corrected) = grad log p(z_T | z_t) with respect to z_t, (B, F, C, h, w).

    With r = alpha_T/alpha_t, h = r (z_T - r z_t) / (sigma_T^2 - r^2 sigma_t^2). As printed, eq. 15 has the opposite
    sign and lacks the factor r (see docs/mathematics.md).
    """
    k = table.at(index, z_t)
    r = table.alpha_T.to(k.alpha) / k.alpha
    variance = (table.sigma_T**2 - (table.alpha_T / table.alpha * table.sigma) ** 2)[index].to(k.alpha)
    return r * (prior - r * z_t) / variance.view_as(r)


def score_from_eps_psi(z_t: Tensor, prior: Tensor, eps: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return the score (eq. 16): grad log q(z_t | z_T) = h - eps_psi / sigma_t, (B, F, C, h, w)."""
    return h_transform(z_t, prior, table, index) - eps / table.at(index, z_t).sigma
