"""Samplers: one function each, the whole loop visible, noise injected, nothing drawn here.

`indices` is descending (see `schedule.sampling_indices`); `noise(k)` gives the noise of the k-th step taken,
(B, F, C, h, w), and is not asked at the last step, which returns the clean estimate. `callback(k, z, z0)`
sees, after the k-th network call, the latent that the network judged and its clean estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.bridge.alignment import network_input
from pipeline.bridge.loss import Denoise
from pipeline.bridge.schedule import BridgeTable
from pipeline.bridge.targets import z0_from_eps_psi

Noise = Callable[[int], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def sde_first_order(
    denoise: Denoise,
    table: BridgeTable,
    prior: Tensor,
    indices: Tensor,
    noise: Noise,
    aligned_t: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First-order sampler of the bridge SDE, from z_T = prior (B, F, C, h, w) to z_0 (B, F, C, h, w).

    From s to t < s, with rho = sigma/alpha: z_t = (alpha_t rho_t^2)/(alpha_s rho_s^2) z_s
    + alpha_t (1 - rho_t^2/rho_s^2) z0_hat + alpha_t rho_t sqrt(1 - rho_t^2/rho_s^2) eps.
    `aligned_t` (N,) turns SAF on, as in `bridge_loss`.
    """
    check_descending(indices, len(table))
    z = prior.to(torch.promote_types(prior.dtype, torch.float32))
    z0 = z
    for k, s in enumerate(indices):
        index = s.expand(len(z))
        seen, timestep = network_input(z, prior, table, index, aligned_t)
        z0 = z0_from_eps_psi(z, denoise(seen, timestep), table, index)
        if callback is not None:
            callback(k, z, z0)
        if k + 1 < len(indices):
            t = indices[k + 1]
            alpha_t, rho_t = table.alpha[t], table.rho[t]
            keep = (rho_t / table.rho[s]) ** 2
            z = alpha_t / table.alpha[s] * keep * z + alpha_t * (1 - keep) * z0
            z = z + alpha_t * rho_t * (1 - keep).sqrt() * noise(k)
    return z0


@torch.no_grad()
def ddim(
    denoise: Denoise,
    alphas_cumprod: Tensor,
    z_T: Tensor,
    indices: Tensor,
    noise: Noise | None = None,
    eta: float = 0.0,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12) for an eps-predicting model, from z_T (B, F, C, h, w) noise to z_0.

    eta = 0 is deterministic, eta = 1 is ancestral sampling; any eta > 0 needs `noise`.
    """
    check_descending(indices, len(alphas_cumprod))
    if eta > 0 and noise is None:
        raise ValueError(f"ddim with eta={eta} is stochastic: give noise(k), or use eta=0")
    z = z_T.to(torch.promote_types(z_T.dtype, torch.float32))
    z0 = z
    for k, s in enumerate(indices):
        eps = denoise(z, s.expand(len(z)).to(z.device, z.dtype)).to(z.dtype)
        abar_s = alphas_cumprod[s]
        z0 = (z - (1 - abar_s).sqrt() * eps) / abar_s.sqrt()
        if callback is not None:
            callback(k, z, z0)
        if k + 1 < len(indices):
            abar_t = alphas_cumprod[indices[k + 1]]
            deviation = eta * ((1 - abar_t) / (1 - abar_s) * (1 - abar_s / abar_t)).sqrt()
            z = abar_t.sqrt() * z0 + (1 - abar_t - deviation**2).sqrt() * eps
            if eta > 0 and noise is not None:
                z = z + deviation * noise(k)
    return z0


def check_descending(indices: Tensor, grid: int) -> None:
    """Refuses a path that does not go strictly from noise to data, or leaves the grid of `grid` points."""
    inside = indices.numel() > 0 and int(indices.min()) >= 0 and int(indices.max()) < grid
    if indices.dim() != 1 or not inside or not bool((indices.diff() < 0).all()):
        raise ValueError(
            f"indices must go down strictly inside 0..{grid - 1}, not {indices.tolist()}; "
            "sampling_indices(steps) gives them"
        )
