"""The noise schedule under the bridge, and the coefficients of its marginal (FrameBridge section 3, eq. 12).

Symbols as in the paper: z_t = a_t z_0 + b_t z_T + c_t eps, with
a_t = alpha_t (1 - SNR_T/SNR_t), b_t = (SNR_T/SNR_t)(alpha_t/alpha_T), c_t^2 = sigma_t^2 (1 - SNR_T/SNR_t),
SNR_t = alpha_t^2 / sigma_t^2. rho_t = sigma_t/alpha_t = SNR_t^(-1/2) is what the authors' code calls sigma.

A `Schedule` is continuous, t in [0, T], T = 1. A `BridgeTable` holds a schedule at given times in float64: on the grid
that a network is trained on, or at any other times. The authors' grid t_i = (i+1)/(N+1) has neither end: at its last
index b is 0.998, not 1, and c is not 0. At the ends themselves a, b, c are 1, 0, 0 (t = 0) and 0, 1, 0 (t = T).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """alpha_t and sigma_t^2 of the diffusion dz = f z dt + g dw under the bridge: float64 functions of t in [0, 1].

    alpha(0) = 1 and sigma2(0) = 0; SNR decreases. Every such pair makes a bridge (eq. 10 to 12).
    """

    alpha: Function
    sigma2: Function

    def f(self, t: Tensor) -> Tensor:
        """Return the drift f_t = d log(alpha_t) / dt, of t's shape."""
        return _derivative(lambda s: self.alpha(s).log(), t)

    def g2(self, t: Tensor) -> Tensor:
        """Return the squared diffusion g_t^2 = d sigma_t^2 / dt - 2 f_t sigma_t^2, of t's shape."""
        return _derivative(self.sigma2, t) - 2 * self.f(t) * self.sigma2(t)


def _derivative(function: Function, t: Tensor) -> Tensor:
    return jvp(function, (t,), (torch.ones_like(t),))[1]


def gmax(beta0: float = 0.01, beta1: float = 50.0) -> Schedule:
    """Return the paper's schedule: alpha = 1, and g_t^2 from beta0 to beta1.

    Thus sigma_t^2 = (beta1 - beta0) t^2/2 + beta0 t, and sigma_T^2 = (beta0 + beta1)/2, so SNR_T is not zero. Raises
    ValueError.
    """
    _check_betas("gmax", beta0, beta1)
    return Schedule(alpha=torch.ones_like, sigma2=lambda t: (beta1 - beta0) * t**2 / 2 + beta0 * t)


def vp(beta0: float = 0.01, beta1: float = 20.0) -> Schedule:
    """Return the variance preserving schedule with linear betas (Song et al. 2021): f_t = -beta_t/2, g_t^2 = beta_t.

    alpha_t^2 = exp(-B_t), sigma_t^2 = 1 - alpha_t^2 with B_t the integral of beta_t (beta0 to beta1). On the
    grid of 1000 points, beta0 = 0.1 and beta1 = 20 are DDPM's linear betas 1e-4 .. 2e-2. Raises ValueError.
    """
    _check_betas("vp", beta0, beta1)

    def integral(t: Tensor) -> Tensor:
        return beta0 * t + (beta1 - beta0) * t**2 / 2

    return Schedule(alpha=lambda t: (-integral(t) / 2).exp(), sigma2=lambda t: -torch.expm1(-integral(t)))


def _check_betas(name: str, beta0: float, beta1: float) -> None:
    if not 0 < beta0 <= beta1:
        raise ValueError(f"{name} needs 0 < beta0 <= beta1, not {beta0=}, {beta1=}")


SCHEDULES = {"gmax": gmax, "vp": vp}


class Coefficients(NamedTuple):
    """Coefficients at one index per sample, each (B, 1, 1, 1, 1): ready to multiply (B, F, C, h, w)."""

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


@dataclass(frozen=True)
class BridgeTable:
    """A bridge at N times: every tensor is (N,) float64, except alpha_T and sigma_T, which are 0-d.

    The tensors lie on the CPU, and so must an index into them.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    f: Tensor
    g2: Tensor
    alpha_T: Tensor
    sigma_T: Tensor

    def __len__(self) -> int:
        return self.t.numel()

    @property
    def rho(self) -> Tensor:
        """Return rho_t = sigma_t / alpha_t = SNR_t^(-1/2), (N,)."""
        return self.sigma / self.alpha

    @property
    def root_snr(self) -> Tensor:
        """Return a_t / c_t, (N,): sqrt(SNR) of the bridge without its prior (Proposition 2), 0 at T, infinite at 0.

        Computed as sqrt(SNR_t - SNR_T), because a_t/c_t would be 0/0 at the ends.
        """
        return (1 / self.rho**2 - (self.alpha_T / self.sigma_T) ** 2).clamp(min=0).sqrt()

    def at(self, index: Tensor, like: Tensor) -> Coefficients:
        """Return the coefficients at `index` (B,) int64, on the device of `like` and in its dtype or float32.

        bfloat16 cannot hold a_t = 0.998, so half-precision latents are promoted in place of rounding coefficients.
        Raises ValueError.
        """
        if index.dim() != 1 or index.is_floating_point():
            raise ValueError(
                f"index must be one integer per sample, shape (B,), not {index.dtype} "
                f"{tuple(index.shape)}; index into the grid of {len(self)} points, 0 is clean"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        columns = (getattr(self, name)[index].to(like.device, dtype) for name in Coefficients._fields)
        return Coefficients(*(column.view(-1, *(1,) * (like.dim() - 1)) for column in columns))


def tabulate(schedule: Schedule, t: Tensor) -> BridgeTable:
    """Tabulate eq. 12 for a schedule at ascending times t (N,) in [0, 1], exactly at the ends. Raises ValueError."""
    t = t.double()
    if t.dim() != 1 or not bool(((t >= 0) & (t <= 1)).all()) or not bool((t.diff() > 0).all()):
        raise ValueError(f"times must ascend inside 0..1, shape (N,), not {t}; a bridge ends at T = 1")
    end = torch.ones((), dtype=torch.float64)
    alpha, sigma2, alpha_T, sigma2_T = schedule.alpha(t), schedule.sigma2(t), schedule.alpha(end), schedule.sigma2(end)
    ratio = sigma2 / alpha**2 / (sigma2_T / alpha_T**2)  # SNR_T / SNR_t
    a = alpha * (1 - ratio)
    b = ratio * alpha / alpha_T
    c = (sigma2 * (1 - ratio)).sqrt()
    return BridgeTable(t, alpha, sigma2.sqrt(), a, b, c, schedule.f(t), schedule.g2(t), alpha_T, sigma2_T.sqrt())


def bridge_grid(schedule: Schedule, steps: int = 1000) -> BridgeTable:
    """Tabulate a schedule on the authors' grid: t_i = (i+1)/(steps+1), i = 0..steps-1. Raises ValueError."""
    if steps < 2:
        raise ValueError(f"a bridge's grid needs 2 points or more, not {steps}")
    return tabulate(schedule, torch.arange(1, steps + 1, dtype=torch.float64) / (steps + 1))


def ddpm_alphas_cumprod(
    beta_start: float = 1e-4,
    beta_end: float = 2e-2,
    steps: int = 1000,
    scaled: bool = False,
    snr_shift: float = 1.0,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Tabulate a pre-trained diffusion model's cumulative product of alphas, (steps,) float64, descending.

    Betas linear (DDPM), or linear in their root: `scaled` (Latent Diffusion). `snr_shift` s divides every SNR by s
    (CogVideoX: 3); `zero_terminal_snr` moves and scales sqrt(alphas_cumprod) so that the last is 0 and the first keeps
    its value (Lin et al. 2024, algorithm 1). CogVideoX-2B: 0.00085, 0.012, scaled, 3.0, zero terminal SNR.
    """
    power = 2 if scaled else 1
    betas = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), steps, dtype=torch.float64) ** power
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    alphas_cumprod = alphas_cumprod / (snr_shift + (1 - snr_shift) * alphas_cumprod)
    if zero_terminal_snr:
        root = alphas_cumprod.sqrt()
        alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return alphas_cumprod


def sampling_indices(steps: int, grid: int = 1000, spacing: str = "uniform") -> Tensor:
    """Return the grid indices that a sampler of `steps` steps visits, (steps,) int64, descending from grid - 1.

    uniform     evenly spaced down to 0, as in the authors' Latte code;
    trailing    evenly spaced, with one more step to t = 0, as in their CogVideoX and VideoCrafter code;
    quadratic   denser towards the clip: evenly spaced in the root of time, down to 0.

    Raises ValueError for an unknown spacing or an impossible number of steps.
    """
    if not 1 <= steps <= grid:
        raise ValueError(f"a sampler on a grid of {grid} points takes 1 to {grid} steps, not {steps}")
    if spacing not in ("uniform", "trailing", "quadratic"):
        raise ValueError(f"spacing {spacing!r} is not known; choose uniform, trailing or quadratic")
    if spacing == "trailing":
        return (torch.arange(steps, 0, -1, dtype=torch.float64) * (grid / steps)).round().long() - 1
    if spacing == "uniform" or steps == 1:
        return torch.linspace(grid - 1, 0, steps, dtype=torch.float64).round().long()
    roots = torch.linspace(grid**0.5, 1, steps, dtype=torch.float64)
    least = torch.arange(steps - 1, -1, -1)  # neighbours near 0 would share a point: each takes the next free one
    return torch.maximum((roots**2).round().long() - 1, least)
