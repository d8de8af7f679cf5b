"""Against conditional image leakage (CIL, Zhao et al. 2024): a model that copies its image at large t and moves too little.

TimeNoise    in training, noise on the image condition, more of it the later the time; clean at inference.
Analytic-Init    in sampling, start at M < T from the Gaussian nearest to the true marginal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def time_noise_level(normal: Tensor, t: Tensor, beta_m: float, power: float = 5.0) -> Tensor:
    """TimeNoise's beta_s = beta_m sigmoid(n), n ~ N(mu(t), 1), mu(t) = 2 t^power - 1, (B,).

    normal (B,) is standard normal; t (B,) in [0, 1], 1 all noise (or the prior).
    """
    return beta_m * torch.sigmoid(normal + 2 * t**power - 1)


def add_time_noise(condition: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """condition + beta_s noise: an image latent (B, C, h, w) or image tokens (B, N, D), level (B,)."""
    if condition.shape != noise.shape or level.shape != condition.shape[:1]:
        raise ValueError(
            f"TimeNoise on {tuple(condition.shape)} needs noise of that shape and one level a sample, "
            f"not {tuple(noise.shape)} and {tuple(level.shape)}"
        )
    return condition + level.to(condition).view(-1, *(1,) * (condition.dim() - 1)) * noise


def seeded_noise(like: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise of the shape and device of `like` (B, ...), each sample's from its own seed, (B,) int64."""
    generators = (torch.Generator().manual_seed(int(seed)) for seed in seeds)
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)


def analytic_init(mean: Tensor, variance: float, alpha: float, sigma: float, noise: Tensor) -> Tensor:
    """A draw from Proposition 1's N(alpha_M E[z0], (alpha_M^2 tr(Cov)/d + sigma_M^2) I), of the noise's shape.

    Of all isotropic Gaussians the one with the least KL divergence from q(z_M). mean (F, C, h, w) = E[z0] and
    variance = tr(Cov[z0])/d are of the data (jobs/latent_moments.py); alpha and sigma of the schedule at M. A variance
    exploding model such as SVD has alpha = 1 and sigma = sigma_M.
    """
    deviation = (alpha**2 * variance + sigma**2) ** 0.5
    return alpha * mean.to(noise) + deviation * noise
