"""Coefficients of the bridge: what they must be at both ends, and in every precision."""

import pytest
import torch

from pipeline.bridge.schedule import gmax_table, linear_alphas_cumprod, sampling_indices

TABLE = gmax_table()


def test_bridge_does_not_start_at_the_clip() -> None:
    assert 1 - TABLE.a[0] < 2e-6
    assert TABLE.b[0] < 2e-6
    assert TABLE.c[0] < 0.006


def test_bridge_does_not_end_at_the_prior() -> None:
    # the last grid point is 1000/1001, not T = 1: nearly, but not wholly the prior
    assert 0.99 < TABLE.b[-1] < 1
    assert 0 < TABLE.a[-1] < 0.01
    assert 0 < TABLE.c[-1] < 0.3


def test_signal_and_prior_shares_do_not_add_up() -> None:
    # alpha = 1: a static clip, z0 = zT, keeps its mean all along the bridge
    torch.testing.assert_close(TABLE.a + TABLE.b, torch.ones(1000, dtype=torch.float64))


def test_variance_is_not_that_of_a_brownian_bridge() -> None:
    # conditioned Gaussian: Var = sigma_t^2 (sigma_T^2 - sigma_t^2) / sigma_T^2 for alpha = 1
    expected = TABLE.sigma**2 * (TABLE.sigma_T**2 - TABLE.sigma**2) / TABLE.sigma_T**2
    torch.testing.assert_close(TABLE.c**2, expected)


def test_half_precision_latents_round_the_coefficients() -> None:
    latent = torch.zeros(2, 3, 4, 2, 2, dtype=torch.bfloat16)
    k = TABLE.at(torch.tensor([0, 999]), latent)
    assert k.a.dtype == torch.float32
    assert k.a.shape == (2, 1, 1, 1, 1)
    torch.testing.assert_close(k.b.flatten(), TABLE.b[[0, 999]].float())


def test_double_latents_lose_precision() -> None:
    k = TABLE.at(torch.tensor([500]), torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64))
    assert k.c.item() == TABLE.c[500].item()


def test_a_timestep_is_taken_for_an_index() -> None:
    with pytest.raises(ValueError, match="one integer per sample"):
        TABLE.at(torch.tensor([500.0]), torch.zeros(1, 1, 1, 1, 1))


def test_schedule_of_impossible_betas_is_accepted() -> None:
    with pytest.raises(ValueError, match="beta0=50"):
        gmax_table(beta0=50, beta1=0.01)


def test_pretrained_schedule_leaves_its_range() -> None:
    alphas_cumprod = linear_alphas_cumprod()
    assert alphas_cumprod[0] == 1 - 1e-4
    assert 0 < alphas_cumprod[-1] < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 7, 250, 1000])
def test_sampling_path_misses_an_end_or_repeats_a_point(steps: int) -> None:
    indices = sampling_indices(steps)
    assert len(indices) == steps
    assert indices[0] == 999
    assert steps == 1 or indices[-1] == 0
    assert bool((indices.diff() < 0).all())


@pytest.mark.parametrize("steps", [0, 1001])
def test_sampling_path_of_an_impossible_length_is_accepted(steps: int) -> None:
    with pytest.raises(ValueError, match=f"not {steps}"):
        sampling_indices(steps)
