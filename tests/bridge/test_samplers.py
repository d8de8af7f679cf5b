"""Samplers against data whose best denoiser and marginals are known in closed form, and their contracts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.bridge.alignment import aligned_timesteps
from pipeline.bridge.samplers import ddim, sde_first_order
from pipeline.bridge.schedule import gmax_table, linear_alphas_cumprod, sampling_indices

TABLE = gmax_table()
ALPHAS_CUMPROD = linear_alphas_cumprod()
MEAN, DEVIATION, PRIOR = 0.5, 0.8, 2.0
SHAPE = (1, 4, 5, 50, 50)


def drawn(seed: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda k: torch.randn(SHAPE, generator=generator)


def gaussian_denoiser(z: Tensor, t: Tensor) -> Tensor:
    """eps_psi of the best estimate E[z0 | z_t, z_T] when z0 ~ N(MEAN, DEVIATION^2) whatever the prior."""
    a, b, c, sigma = (float(column[int(t[0])]) for column in (TABLE.a, TABLE.b, TABLE.c, TABLE.sigma))
    gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + c**2)
    return (z - (MEAN + gain * (z - a * MEAN - b * PRIOR))) / sigma


def gaussian_eps(z: Tensor, t: Tensor) -> Tensor:
    """eps of the best estimate E[z0 | z_t] of a diffusion model of the same data."""
    abar = float(ALPHAS_CUMPROD[int(t[0])])
    gain = abar**0.5 * DEVIATION**2 / (abar * DEVIATION**2 + 1 - abar)
    return (z - abar**0.5 * (MEAN + gain * (z - abar**0.5 * MEAN))) / (1 - abar) ** 0.5


def test_bridge_marginals_are_not_those_of_the_forward_process() -> None:
    indices = sampling_indices(200)
    visited: dict[int, Tensor] = {}
    z0 = sde_first_order(
        gaussian_denoiser,
        TABLE,
        torch.full(SHAPE, PRIOR),
        indices,
        drawn(0),
        callback=lambda k, z, estimate: visited.update({int(indices[k]): z}),
    )
    for index in (int(indices[k]) for k in (40, 100, 160, 190)):
        a, b, c = (float(column[index]) for column in (TABLE.a, TABLE.b, TABLE.c))
        variance = a**2 * DEVIATION**2 + c**2
        assert abs(visited[index].mean().item() - (a * MEAN + b * PRIOR)) < 0.03
        assert abs(visited[index].var().item() / variance - 1) < 0.05
    assert abs(z0.mean().item() - MEAN) < 0.03
    assert abs(z0.std().item() / DEVIATION - 1) < 0.03


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_does_not_give_the_data(eta: float) -> None:
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    z0 = ddim(gaussian_eps, ALPHAS_CUMPROD, start, sampling_indices(200), drawn(2), eta)
    assert abs(z0.mean().item() - MEAN) < 0.03
    assert abs(z0.std().item() / DEVIATION - 1) < 0.03


def test_one_step_is_not_the_first_estimate() -> None:
    prior = torch.full((2, 1, 1, 1, 1), PRIOR)
    z0 = sde_first_order(lambda z, t: torch.zeros_like(z), TABLE, prior, sampling_indices(1), noise=lambda k: prior)
    torch.testing.assert_close(z0, prior)


def test_noise_is_asked_at_the_last_step() -> None:
    asked: list[int] = []

    def noise(k: int) -> Tensor:
        asked.append(k)
        return torch.zeros(1, 1, 1, 1, 1)

    sde_first_order(lambda z, t: z, TABLE, torch.ones(1, 1, 1, 1, 1), sampling_indices(4), noise)
    assert asked == [0, 1, 2]


def test_aligned_sampler_shows_the_network_the_bridges_own_time() -> None:
    aligned_t = aligned_timesteps(TABLE, ALPHAS_CUMPROD)
    indices = sampling_indices(4)
    seen: list[float] = []

    def network(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return z

    prior = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    sde_first_order(network, TABLE, prior, indices, lambda k: torch.zeros_like(prior), aligned_t)
    assert seen == aligned_t[indices].tolist()


def test_half_precision_prior_accumulates_in_half_precision() -> None:
    prior = torch.ones(1, 1, 1, 1, 1, dtype=torch.bfloat16)
    z0 = sde_first_order(
        lambda z, t: z.bfloat16(), TABLE, prior, sampling_indices(3), lambda k: torch.zeros_like(prior)
    )
    assert z0.dtype == torch.float32


@pytest.mark.parametrize("indices", [[0, 999], [999, 999], [1000, 0], [5, -1], []])
def test_path_that_does_not_go_down_is_accepted(indices: list[int]) -> None:
    path = torch.tensor(indices, dtype=torch.int64)
    with pytest.raises(ValueError, match="sampling_indices"):
        sde_first_order(lambda z, t: z, TABLE, torch.ones(1, 1, 1, 1, 1), path, torch.zeros)


def test_stochastic_ddim_without_noise_is_accepted() -> None:
    with pytest.raises(ValueError, match="noise"):
        ddim(lambda z, t: z, ALPHAS_CUMPROD, torch.ones(1, 1, 1, 1, 1), sampling_indices(2), eta=1.0)


def test_global_randomness_is_drawn() -> None:
    before = torch.get_rng_state()
    shape = (1, 1, 1, 1, 1)
    sde_first_order(lambda z, t: z, TABLE, torch.ones(shape), sampling_indices(3), lambda k: torch.ones(shape))
    ddim(lambda z, t: z, ALPHAS_CUMPROD, torch.ones(shape), sampling_indices(3))
    assert torch.equal(torch.get_rng_state(), before)
