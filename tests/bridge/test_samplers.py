"""Samplers on data with best denoiser, marginals and flow in closed form, and what they require of their input."""

from collections.abc import Callable

import pytest
import torch
from helpers.gaussian_bridge import DEVIATION, MEAN, PRIOR, best_clean, flow, impulse_moments, moments, order, watched
from torch import Tensor

from pipeline.bridge.alignment import aligned_timesteps
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.samplers import (
    Clean,
    bridge_clean,
    dbim,
    ddim,
    diffusion_clean,
    ode_first_order,
    ode_second_order,
    sde_first_order,
    stochastic_heun,
)
from pipeline.bridge.schedule import BridgeTable, bridge_grid, ddpm_alphas_cumprod, gmax, sampling_indices, tabulate, vp
from pipeline.bridge.targets import eps_psi

TABLE = bridge_grid(gmax())
ALPHAS_CUMPROD = ddpm_alphas_cumprod()
SHAPE = (1, 4, 5, 50, 50)
# 10000 points with T itself the last: fine enough for 640 steps, and no error of a bridge that ends before T
N = 10000
FINE = {
    name: tabulate(s, torch.arange(1, N + 1, dtype=torch.float64) / N) for name, s in (("gmax", gmax()), ("vp", vp()))
}
START, END = 9500, 499  # t = 0.95 and 0.05
ONE = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)


def drawn(seed: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda k: torch.randn(SHAPE, generator=generator)


def gaussian_denoiser(table: BridgeTable) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the best estimate as a network's eps_psi."""
    clean = best_clean(table)
    return lambda z, t: eps_psi(z, clean(z, t[0].long()), table, t.long())


def gaussian_eps(z: Tensor, t: Tensor) -> Tensor:
    """Return eps of the best estimate E[z0 | z_t] of a diffusion model of the same data."""
    abar = float(ALPHAS_CUMPROD[int(t[0])])
    gain = abar**0.5 * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
    return (z - abar**0.5 * (MEAN + gain * (z - abar**0.5 * MEAN))) / (1 - abar) ** 0.5


def path(steps: int, *first: int) -> Tensor:
    """Return even steps from START to END, after the indices `first`."""
    even = torch.linspace(first[-1] if first else START, END, steps + 1, dtype=torch.float64).round().long()
    return torch.cat([torch.tensor(first[:-1], dtype=torch.int64), even])


def last_latent(sampler: Callable[..., Tensor], clean: Clean, *arguments: object, **named: object) -> Tensor:
    """Return z at the last index of the path; the sampler itself goes on to z_0."""
    seen: list[Tensor] = []
    sampler(watched(clean, seen), *arguments, **named)
    return seen[-1]


@pytest.mark.parametrize("schedule", FINE)
@pytest.mark.parametrize(
    ("sampler", "expected"),
    [(ode_first_order, 1), (ode_second_order, 2), (stochastic_heun, 2)],
    ids=["first order", "second order", "stochastic heun"],
)
def test_ode_sampler_has_its_order(sampler: Callable[..., Tensor], expected: int, schedule: str) -> None:
    table = FINE[schedule]
    prior, truth = PRIOR * ONE, flow(table, PRIOR * ONE, START, END)
    more = {"noise": None, "churn": 0.0} if sampler is stochastic_heun else {}
    counts = [40, 80, 160, 320]
    errors = [
        abs(float(last_latent(sampler, best_clean(table), table, prior, path(n), **more) - truth)) for n in counts
    ]
    assert order(errors, counts) > expected - 0.1


@pytest.mark.parametrize("schedule", FINE)
@pytest.mark.parametrize("expected", [1, 2, 3])
def test_dbim_has_its_order(expected: int, schedule: str) -> None:
    table = FINE[schedule]
    clean, prior = best_clean(table), PRIOR * ONE
    booted = table.a[START] * clean(prior, torch.tensor(N - 1)) + table.b[START] * prior + table.c[START]
    truth = flow(table, booted, START, END)
    # its first steps are of lower order, for want of a history: made tiny, they do not hide the order of the rest
    first = (N - 1, *range(START, START - 2 * expected, -2))
    counts = [160, 320, 640]
    errors = []
    for n in counts:
        z = last_latent(dbim, clean, table, prior, path(n, *first), lambda k: ONE, order=expected)
        errors.append(abs(float(z - truth)))
    assert order(errors, counts) > expected - 0.2
    assert errors[-1] < {1: 3e-3, 2: 3e-5, 3: 1e-6}[expected]


@pytest.mark.parametrize("schedule", FINE)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dbim_approaches_the_exact_moments(eta: float, schedule: str) -> None:
    """The mean is exact at any number of steps; the variance converges with order 1."""
    table = FINE[schedule]
    counts, errors = [40, 80, 160], []
    mean, variance = moments(table, END)
    for n in counts:

        def sample(prior: Tensor, noise: Callable[[int], Tensor], n: int = n) -> Tensor:
            return last_latent(dbim, best_clean(table), table, prior, path(n, N - 1), noise, eta=eta)

        found = impulse_moments(sample, n)
        assert abs(found[0] - mean) < 1e-9
        errors.append(abs(found[1] - variance))
    assert order(errors, counts) > 0.85
    assert errors[-1] < 0.15 * variance


@pytest.mark.parametrize("schedule", FINE)
def test_stochastic_heun_approaches_the_exact_moments(schedule: str) -> None:
    table = FINE[schedule]
    mean, variance = moments(table, END)

    def sample(prior: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        # from next to T, where z_T itself is all but a draw of the marginal
        return last_latent(stochastic_heun, best_clean(table), table, prior, path(80, 9990), noise)

    found = impulse_moments(sample, 80)
    assert abs(found[0] - mean) < 0.005
    assert abs(found[1] / variance - 1) < 0.02


def test_dbim_of_eta_one_equals_the_first_order_sde() -> None:
    indices = sampling_indices(9)
    prior = PRIOR * ONE.expand(2, 3, 1, 2, 2)
    noises = torch.randn(9, *prior.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one = dbim(best_clean(FINE["gmax"]), FINE["gmax"], prior, indices + N - 1000, lambda k: noises[k], eta=1.0)
    other = sde_first_order(best_clean(FINE["gmax"]), FINE["gmax"], prior, indices + N - 1000, lambda k: noises[k])
    torch.testing.assert_close(one, other)


def test_first_order_ode_equals_bridge_tts() -> None:
    """Proposition 3.2 of Bridge-TTS, sigma-bar^2 = rho_T^2 - rho_t^2, alpha = 1, z_s = z_T, the sampler's start."""
    s, t, z0 = 900, 500, 0.3
    rho_s, rho_t, rho_T = float(TABLE.rho[s]), float(TABLE.rho[t]), float(TABLE.sigma_T)
    bar_s, bar_t = (rho_T**2 - rho_s**2) ** 0.5, (rho_T**2 - rho_t**2) ** 0.5
    expected = rho_t * bar_t / (rho_s * bar_s) * PRIOR
    expected += (bar_t**2 - bar_s * rho_t * bar_t / rho_s) / rho_T**2 * z0
    expected += (rho_t**2 - rho_s * rho_t * bar_t / bar_s) / rho_T**2 * PRIOR
    found = last_latent(ode_first_order, lambda z, k: z0 * ONE, TABLE, PRIOR * ONE, torch.tensor([s, t]))
    assert float(found) == pytest.approx(expected)


def test_bridge_marginals_equal_those_of_the_forward_process() -> None:
    indices = sampling_indices(200)
    visited: list[Tensor] = []
    prior = torch.full(SHAPE, PRIOR)
    clean = watched(bridge_clean(gaussian_denoiser(TABLE), Bridge(TABLE), prior), visited)
    z0 = sde_first_order(clean, TABLE, prior, indices, drawn(0))
    for k in (40, 100, 160, 190):
        mean, variance = moments(TABLE, int(indices[k]))
        assert abs(visited[k].mean().item() - mean) < 0.03
        assert abs(visited[k].var().item() / variance - 1) < 0.05
    assert abs(z0.mean().item() - MEAN) < 0.03
    assert abs(z0.std().item() / DEVIATION - 1) < 0.03


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_gives_the_data(eta: float) -> None:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    clean = diffusion_clean(gaussian_eps, ALPHAS_CUMPROD)
    z0 = ddim(clean, ALPHAS_CUMPROD, start, sampling_indices(200), drawn(2), eta)
    assert abs(z0.mean().item() - MEAN) < 0.03
    assert abs(z0.std().item() / DEVIATION - 1) < 0.03


def test_ddim_is_of_first_order() -> None:
    """The flow of the diffusion's ODE keeps the standardised value of a Gaussian."""
    alphas_cumprod = FINE["vp"].alpha ** 2

    def marginal(index: int) -> tuple[float, float]:
        abar = float(alphas_cumprod[index])
        return abar**0.5 * MEAN, (abar * DEVIATION**2 + 1 - abar) ** 0.5

    def clean(z: Tensor, s: Tensor) -> Tensor:
        mean, deviation = marginal(int(s))
        return MEAN + alphas_cumprod[s].sqrt() * DEVIATION**2 / deviation**2 * (z - mean)

    (mean, deviation), (last_mean, last_deviation) = marginal(START), marginal(END)
    truth = last_mean + last_deviation * (PRIOR - mean) / deviation
    counts = [40, 80, 160, 320]
    errors = [abs(float(last_latent(ddim, clean, alphas_cumprod, PRIOR * ONE, path(n)) - truth)) for n in counts]
    assert order(errors, counts) > 0.9


def test_one_step_gives_the_first_estimate() -> None:
    prior = torch.full((2, 1, 1, 1, 1), PRIOR)
    clean = bridge_clean(lambda z, t: torch.zeros_like(z), Bridge(TABLE), prior)
    z0 = sde_first_order(clean, TABLE, prior, sampling_indices(1), noise=lambda k: prior)
    torch.testing.assert_close(z0, prior)


@pytest.mark.parametrize("sampler", [sde_first_order, stochastic_heun, dbim])
def test_last_step_asks_for_no_noise(sampler: Callable[..., Tensor]) -> None:
    asked: list[int] = []

    def noise(k: int) -> Tensor:
        asked.append(k)
        return torch.zeros(1, 1, 1, 1, 1)

    sampler(lambda z, s: z, TABLE, torch.ones(1, 1, 1, 1, 1), sampling_indices(4), noise)
    assert asked == ([0] if sampler is dbim else [0, 1, 2])  # eta = 0: after the start, nothing is drawn


def test_aligned_sampler_shows_the_network_the_aligned_time() -> None:
    aligned_t = aligned_timesteps(TABLE, ALPHAS_CUMPROD)
    indices = sampling_indices(4)
    seen: list[float] = []

    def network(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return z

    prior = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    clean = bridge_clean(network, Bridge(TABLE, aligned_t), prior)
    sde_first_order(clean, TABLE, prior, indices, lambda k: torch.zeros_like(prior))
    assert seen == aligned_t[indices].tolist()


def test_half_precision_prior_accumulates_in_float32() -> None:
    prior = torch.ones(1, 1, 1, 1, 1, dtype=torch.bfloat16)
    clean = bridge_clean(lambda z, t: z.bfloat16(), Bridge(TABLE), prior)
    z0 = sde_first_order(clean, TABLE, prior, sampling_indices(3), lambda k: torch.zeros_like(prior))
    assert z0.dtype == torch.float32


@pytest.mark.parametrize("indices", [[0, 999], [999, 999], [1000, 0], [5, -1], []])
def test_path_that_does_not_descend_is_refused(indices: list[int]) -> None:
    path = torch.tensor(indices, dtype=torch.int64)
    with pytest.raises(ValueError, match="sampling_indices"):
        sde_first_order(lambda z, t: z, TABLE, torch.ones(1, 1, 1, 1, 1), path, torch.zeros)


def test_stochastic_ddim_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise"):
        ddim(lambda z, t: z, ALPHAS_CUMPROD, torch.ones(1, 1, 1, 1, 1), sampling_indices(2), eta=1.0)


@pytest.mark.parametrize(("wrong", "match"), [({"order": 4}, "order=4"), ({"order": 2, "eta": 0.5}, "eta 0")])
def test_impossible_dbim_is_refused(wrong: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dbim(lambda z, s: z, TABLE, ONE, sampling_indices(2), lambda k: ONE, **wrong)  # type: ignore[arg-type]


def test_churn_of_the_whole_step_is_refused() -> None:
    with pytest.raises(ValueError, match="churn = 1"):
        stochastic_heun(lambda z, s: z, TABLE, ONE, sampling_indices(2), lambda k: ONE, churn=1.0)


def test_global_generator_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    shape = (1, 1, 1, 1, 1)
    sde_first_order(lambda z, t: z, TABLE, torch.ones(shape), sampling_indices(3), lambda k: torch.ones(shape))
    ddim(lambda z, t: z, ALPHAS_CUMPROD, torch.ones(shape), sampling_indices(3))
    assert torch.equal(torch.get_rng_state(), before)
