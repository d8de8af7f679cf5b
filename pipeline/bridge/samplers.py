"""Samplers: one function each with its whole loop visible; the caller gives the noise.

    sde_first_order    the paper's: first-order step of the bridge SDE (Bridge-TTS, Chen et al. 2023)
    ode_first_order    first-order step of the probability-flow ODE (Bridge-TTS); deterministic, starts at z_T itself
    ode_second_order   its Heun correction: two evaluations a step
    stochastic_heun    DDBM's (Zhou et al. 2024, algorithm 1): an SDE step, then a Heun step of the ODE
    dbim               diffusion bridge implicit models (Zheng et al. 2025): eta from ODE to SDE, orders 1 to 3
    ddim               for the diffusion counterpart; eta = 1 is DDPM's ancestral sampler

Every sampler takes `clean(z, s)`, which estimates z_0 from z at the 0-d grid index s. `bridge_clean` and
`diffusion_clean` make it from a network; wrap it to watch a sampler. `indices` descends (see
`schedule.sampling_indices`). `noise(k)` gives the noise of the k-th step, (B, F, C, h, w). The last step adds no noise
and returns the clean estimate.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .bridge import Bridge
from .loss import Denoise
from .schedule import BridgeTable
from .targets import Target, eps_psi, h_transform

Clean = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


def bridge_clean(denoise: Denoise, bridge: Bridge, prior: Tensor) -> Clean:
    """Make the clean estimate of a bridge's network; `prior` (B, F, C, h, w) is z_T."""

    def clean(z: Tensor, s: Tensor) -> Tensor:
        index = s.expand(len(z))
        return bridge.clean_of(z, prior, denoise(*bridge.network_input(z, prior, index)), index)

    return clean


def diffusion_clean(denoise: Denoise, alphas_cumprod: Tensor, target: Target = "noise") -> Clean:
    """Make the clean estimate of a diffusion model's network; `target` as in `diffusion_loss`."""

    def clean(z: Tensor, s: Tensor) -> Tensor:
        prediction = denoise(z, s.expand(len(z)).to(z.device, z.dtype)).to(z.dtype)
        signal, deviation = alphas_cumprod[s].sqrt(), (1 - alphas_cumprod[s]).sqrt()
        if target == "noise":
            return (z - deviation * prediction) / signal
        return signal * z - deviation * prediction if target == "v" else prediction

    return clean


@torch.no_grad()
def sde_first_order(clean: Clean, table: BridgeTable, prior: Tensor, indices: Tensor, noise: Noise) -> Tensor:
    """Sample the bridge SDE by first-order steps, from z_T = prior (B, F, C, h, w) to z_0 (B, F, C, h, w).

    From s to t < s, with rho = sigma/alpha: z_t = (alpha_t rho_t^2)/(alpha_s rho_s^2) z_s
    + alpha_t (1 - rho_t^2/rho_s^2) z0_hat + alpha_t rho_t sqrt(1 - rho_t^2/rho_s^2) eps.
    """
    z = _start(prior, indices, len(table))
    for k, (s, t) in enumerate(pairwise(indices)):
        alpha_t, rho_t = table.alpha[t], table.rho[t]
        keep = (rho_t / table.rho[s]) ** 2
        z = alpha_t / table.alpha[s] * keep * z + alpha_t * (1 - keep) * clean(z, s)
        z = z + alpha_t * rho_t * (1 - keep).sqrt() * noise(k)
    return clean(z, indices[-1])


@torch.no_grad()
def ode_first_order(clean: Clean, table: BridgeTable, prior: Tensor, indices: Tensor) -> Tensor:
    """Sample the probability-flow ODE, d(z/c) = z0_hat d(a/c) + z_T d(b/c), by first-order steps.

    The sampler holds z0_hat from s to t < s: z_t/c_t = z_s/c_s + z0_hat (a_t/c_t - a_s/c_s) + z_T (b_t/c_t - b_s/c_s).
    This is Bridge-TTS's first-order ODE step. The path must not begin at T, where c = 0; the authors' grid does not.
    """
    z = _start(prior, indices, len(table))
    for s, t in pairwise(indices):
        z = _ode_step(z, clean(z, s), prior, table, s, t)
    return clean(z, indices[-1])


@torch.no_grad()
def ode_second_order(clean: Clean, table: BridgeTable, prior: Tensor, indices: Tensor) -> Tensor:
    """Sample the same ODE by second-order steps: repeat each with the mean of z0_hat at its two ends (Heun).

    Every step takes two evaluations, the last takes one.
    """
    z = _start(prior, indices, len(table))
    for s, t in pairwise(indices):
        z0 = clean(z, s)
        ahead = clean(_ode_step(z, z0, prior, table, s, t), t)
        z = _ode_step(z, (z0 + ahead) / 2, prior, table, s, t)
    return clean(z, indices[-1])


def _ode_step(
    z: Tensor, z0: Tensor, prior: Tensor, table: BridgeTable, s: Tensor, t: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Go from s to t with z0_hat held: along the probability-flow ODE, or with the share `keep` of the noise in z."""
    keep = table.c[t] / table.c[s] if keep is None else keep
    return keep * z + (table.a[t] - keep * table.a[s]) * z0 + (table.b[t] - keep * table.b[s]) * prior


@torch.no_grad()
def stochastic_heun(
    clean: Clean, table: BridgeTable, prior: Tensor, indices: Tensor, noise: Noise, churn: float = 0.33
) -> Tensor:
    """Sample by DDBM's hybrid: each step goes its first `churn` part along the SDE (Euler-Maruyama), the rest by Heun.

    With f, g of the schedule, the score of eq. 16 and h of eq. 15, the SDE is dz = [f z - g^2 (score - h)] dt + g dw
    backwards, and the ODE is dz = [f z - g^2 (score/2 - h)] dt. Every step takes three evaluations, the last takes one.
    Both parts integrate in t itself, so choose a path that is dense near the clip (spacing quadratic). Raises
    ValueError for an impossible churn.
    """
    if not 0 <= churn < 1:
        raise ValueError(f"churn = {churn}: expected a part of the step from 0 (no noise) to below 1; DDBM's is 0.33")
    z = _start(prior, indices, len(table))

    def slope(z: Tensor, z0: Tensor, s: Tensor, share: float) -> Tensor:
        """Return f z - g^2 (share * score - h)."""
        index = s.expand(len(z))
        h = h_transform(z, prior, table, index)
        score = h - eps_psi(z, z0, table, index) / table.sigma[s]
        return table.f[s] * z - table.g2[s] * (share * score - h)

    for k, (s, t) in enumerate(pairwise(indices)):
        z0 = clean(z, s)
        middle = s - round(churn * int(s - t))
        if middle < s:
            time = table.t[middle] - table.t[s]
            z = z + time * slope(z, z0, s, 1.0) + (table.g2[s] * -time).sqrt() * noise(k)
        time = table.t[t] - table.t[middle]
        first = slope(z, clean(z, middle) if middle < s else z0, middle, 0.5)
        ahead = z + time * first
        z = z + time * (first + slope(ahead, clean(ahead, t), t, 0.5)) / 2
    return clean(z, indices[-1])


@torch.no_grad()
def dbim(
    clean: Clean, table: BridgeTable, prior: Tensor, indices: Tensor, noise: Noise, eta: float = 0.0, order: int = 1
) -> Tensor:
    """Sample by DBIM: keep the share sqrt(c_t^2 - n^2) of the noise in z_s and add n new; n is eta times the SDE's.

    z_t = a_t z0_hat + b_t z_T + sqrt(c_t^2 - n^2) (z_s - a_s z0_hat - b_s z_T)/c_s + n eps. The first step has no noise
    to keep and draws all of it ("booting": n = c_t), so that clips differ; thereafter eta = 0 is deterministic and
    eta = 1 is `sde_first_order`. Orders 2 and 3 (eta = 0 only) extrapolate z0_hat in lambda = log(a/c) from the last
    two or three evaluations, and still take one evaluation a step. Raises ValueError for other orders and etas.
    """
    if order not in (1, 2, 3) or not 0 <= eta <= 1 or (order > 1 and eta > 0):
        raise ValueError(f"dbim with {order=}, {eta=}: expected order 1 and 0 <= eta <= 1, or order 2 or 3 and eta 0")
    z = _start(prior, indices, len(table))
    history: list[tuple[float, Tensor]] = []  # (lambda, z0_hat) of the last steps; z_T itself has no lambda
    for k, (s, t) in enumerate(pairwise(indices)):
        z0 = clean(z, s)
        if k == 0:
            z = table.a[t] * z0 + table.b[t] * prior + table.c[t] * noise(k)
            continue
        history = [*history, (float(table.root_snr[s].log()), z0)][-order:]
        new = eta * (table.sigma[t] * (1 - (table.rho[t] / table.rho[s]) ** 2).sqrt())
        z = _ode_step(z, z0, prior, table, s, t, keep=(table.c[t] ** 2 - new**2).sqrt() / table.c[s])
        if eta > 0:
            z = z + new * noise(k)
        if len(history) > 1:
            z = z + table.a[t] * _extrapolation(history, float(table.root_snr[t].log()))
    return clean(z, indices[-1])


def _extrapolation(history: list[tuple[float, Tensor]], end: float) -> Tensor:
    """Integrate exp(l - end) (z0_hat(l) - z0_hat(s)) dl from s to `end`; z0_hat(l) is Newton's polynomial.

    The polynomial goes through `history`: (lambda, z0_hat) of two or three evaluations, the evaluation at s last.
    """
    (s, now), (before, last) = history[-1], history[-2]
    step = end - s
    linear = step - 1 + math.exp(-step)  # of exp(l - end) (l - s)
    slope = (now - last) / (s - before)
    if len(history) == 2:
        return linear * slope
    earliest, first = history[0]
    curvature = (slope - (last - first) / (before - earliest)) / (s - earliest)
    square = step**2 - 2 * linear  # of exp(l - end) (l - s)^2
    # Newton: slope (l - s) + curvature (l - s)(l - before)
    return linear * slope + curvature * (square + (s - before) * linear)


@torch.no_grad()
def ddim(
    clean: Clean, alphas_cumprod: Tensor, z_T: Tensor, indices: Tensor, noise: Noise | None = None, eta: float = 0.0
) -> Tensor:
    """Sample by DDIM (Song et al. 2021, eq. 12), from noise z_T (B, F, C, h, w) to z_0.

    eta = 0 is deterministic, eta = 1 is DDPM's ancestral sampling. Raises ValueError for eta > 0 without `noise`.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"ddim with eta={eta} is stochastic: give noise(k), or use eta=0")
    z = _start(z_T, indices, len(alphas_cumprod))
    for k, (s, t) in enumerate(pairwise(indices)):
        z0 = clean(z, s)
        abar_s, abar_t = alphas_cumprod[s], alphas_cumprod[t]
        eps = (z - abar_s.sqrt() * z0) / (1 - abar_s).sqrt()
        deviation = eta * ((1 - abar_t) / (1 - abar_s) * (1 - abar_s / abar_t)).sqrt()
        z = abar_t.sqrt() * z0 + (1 - abar_t - deviation**2).sqrt() * eps
        if eta > 0 and noise is not None:
            z = z + deviation * noise(k)
    return clean(z, indices[-1])


def _start(start: Tensor, indices: Tensor, grid: int) -> Tensor:
    """Check the path; return the start in float32 or better, because bfloat16 would lose the small steps."""
    check_descending(indices, grid)
    return start.to(torch.promote_types(start.dtype, torch.float32))


def check_descending(indices: Tensor, grid: int) -> None:
    """Raise ValueError for a path that does not descend strictly, or that leaves the grid of `grid` points."""
    inside = indices.numel() > 0 and int(indices.min()) >= 0 and int(indices.max()) < grid
    if indices.dim() != 1 or not inside or not bool((indices.diff() < 0).all()):
        raise ValueError(
            f"indices must go down strictly inside 0..{grid - 1}, not {indices.tolist()}; use sampling_indices(steps)"
        )
