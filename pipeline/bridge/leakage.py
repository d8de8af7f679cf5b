"""Remedies for conditional image leakage (CIL, Zhao et al. 2024): a model copies its image at large t and hardly moves.

TimeNoise        in training, add noise to the image condition, more at later times; it is clean at inference.
Analytic-Init    in sampling, start at M < T from the Gaussian nearest to the true marginal.
"""

import torch
from torch import Tensor


def time_noise_level(normal: Tensor, t: Tensor, beta_m: float, power: float = 5.0) -> Tensor:
    """Return TimeNoise's beta_s = beta_m sigmoid(n), n ~ N(mu(t), 1), mu(t) = 2 t^power - 1, (B,).

    normal (B,) is standard normal; t (B,) lies in [0, 1]; t = 1 is the end of noise (or of the prior).
    """
    return beta_m * torch.sigmoid(normal + 2 * t**power - 1)


def add_time_noise(condition: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Return condition + beta_s noise, for an image latent (B, C, h, w) or image tokens (B, N, D), and level (B,).

    Raises ValueError where the shapes do not fit.
    """
    if condition.shape != noise.shape or level.shape != condition.shape[:1]:
        raise ValueError(
            f"TimeNoise on {tuple(condition.shape)} needs noise of that shape and one level per sample, "
            f"not {tuple(noise.shape)} and {tuple(level.shape)}"
        )
    return condition + level.to(condition).view(-1, *(1,) * (condition.dim() - 1)) * noise


def seeded_noise(like: Tensor, seeds: Tensor) -> Tensor:
    """Draw standard normal noise like `like` (B, ...), each sample from its own seed in `seeds` (B,) int64."""
    generators = (torch.Generator().manual_seed(int(seed)) for seed in seeds)
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)


def analytic_init(mean: Tensor, variance: float, alpha: float, sigma: float, noise: Tensor) -> Tensor:
    """Turn noise into a draw from Proposition 1's N(alpha_M E[z0], (alpha_M^2 tr(Cov)/d + sigma_M^2) I).

    No other isotropic Gaussian has a smaller KL divergence from q(z_M). jobs/latent_moments.py computes
    mean (F, C, h, w) = E[z0] and variance = tr(Cov[z0])/d from the data; alpha and sigma are the schedule's at M.
    A variance exploding model such as SVD has alpha = 1 and sigma = sigma_M.
    """
    return alpha * mean.to(noise) + (alpha**2 * variance + sigma**2) ** 0.5 * noise
