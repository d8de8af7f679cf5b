"""The noise schedule under the bridge, and the coefficients of its marginal (FrameBridge section 3, eq. 12).

Symbols as in the paper: z_t = a_t z_0 + b_t z_T + c_t eps, with
a_t = alpha_t (1 - SNR_T/SNR_t), b_t = (SNR_T/SNR_t)(alpha_t/alpha_T), c_t^2 = sigma_t^2 (1 - SNR_T/SNR_t),
SNR_t = alpha_t^2 / sigma_t^2. rho_t = sigma_t/alpha_t = SNR_t^(-1/2) is what the authors' code calls sigma.

T = 1 is not a point of the grid t_i = (i+1)/(N+1): at the last index b is 0.998, not 1, and c is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Coefficients at one index per sample, each (B, 1, 1, 1, 1): ready to multiply (B, F, C, h, w)."""

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


@dataclass(frozen=True)
class BridgeTable:
    """A bridge on its discrete grid: every tensor is (N,) float64, but the end point's, which are 0-d.

    The tensors live on the CPU until `to` moves them; an index on the CPU works with either.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    alpha_T: Tensor
    sigma_T: Tensor

    def __len__(self) -> int:
        return self.t.numel()

    @property
    def rho(self) -> Tensor:
        """rho_t = sigma_t / alpha_t = SNR_t^(-1/2), (N,)."""
        return self.sigma / self.alpha

    def to(self, device: torch.device | str) -> BridgeTable:
        """The same table on another device."""
        return BridgeTable(*(getattr(self, field.name).to(device) for field in fields(self)))

    def at(self, index: Tensor, like: Tensor) -> Coefficients:
        """Coefficients at `index` (B,) int64, on the device of `like` and in its dtype, float32 at least.

        bfloat16 cannot hold a_t = 0.998, so half-precision latents are promoted, not coefficients rounded.
        """
        if index.dim() != 1 or index.is_floating_point():
            raise ValueError(
                f"index must be one integer per sample, shape (B,), not {index.dtype} "
                f"{tuple(index.shape)}; index into the grid of {len(self)} points, 0 is clean"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (-1,) + (1,) * (like.dim() - 1)
        return Coefficients(
            *(
                column[index].to(like.device, dtype).view(shape)
                for column in (self.alpha, self.sigma, self.a, self.b, self.c)
            )
        )


def bridge_table(t: Tensor, alpha: Tensor, sigma: Tensor, alpha_T: Tensor, sigma_T: Tensor) -> BridgeTable:
    """Eq. 12's coefficients for a schedule on any grid: t, alpha, sigma (N,), alpha_T and sigma_T 0-d."""
    ratio = (sigma / alpha) ** 2 / (sigma_T / alpha_T) ** 2  # SNR_T / SNR_t
    a = alpha * (1 - ratio)
    b = ratio * alpha / alpha_T
    c = sigma * (1 - ratio).sqrt()
    return BridgeTable(t, alpha, sigma, a, b, c, alpha_T, sigma_T)


def gmax_table(beta0: float = 0.01, beta1: float = 50.0, steps: int = 1000) -> BridgeTable:
    """Schedule "gmax": alpha = 1, sigma_t^2 = (beta1 - beta0) t^2/2 + beta0 t.

    T = 1, so sigma_T^2 = (beta0 + beta1)/2 and SNR_T is not zero. Grid of the authors' code:
    t_i = (i+1)/(steps+1), i = 0..steps-1.
    """
    if not (0 < beta0 <= beta1 and steps >= 2):
        raise ValueError(f"gmax needs 0 < beta0 <= beta1 and steps >= 2, not {beta0=}, {beta1=}, {steps=}")
    t = torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1)
    sigma = ((beta1 - beta0) * t**2 / 2 + beta0 * t).sqrt()
    sigma_T = torch.tensor((beta0 + beta1) / 2, dtype=torch.float64).sqrt()
    return bridge_table(t, torch.ones_like(t), sigma, torch.ones_like(sigma_T), sigma_T)


def linear_alphas_cumprod(beta_start: float = 1e-4, beta_end: float = 2e-2, steps: int = 1000) -> Tensor:
    """The pre-trained DDPM's cumulative product of alphas for linearly spaced betas, (steps,) float64."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), dim=0)


def sampling_indices(steps: int, grid: int = 1000) -> Tensor:
    """Grid indices that a sampler of `steps` steps visits, (steps,) int64, from grid - 1 down to 0."""
    if not 1 <= steps <= grid:
        raise ValueError(f"a sampler on a grid of {grid} points takes 1 to {grid} steps, not {steps}")
    return torch.linspace(grid - 1, 0, steps, dtype=torch.float64).round().long()
