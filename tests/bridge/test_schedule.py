"""Coefficients of the bridge, at both ends and in every precision."""

import pytest
import torch

from pipeline.bridge.schedule import (
    BridgeTable,
    Schedule,
    bridge_grid,
    ddpm_alphas_cumprod,
    gmax,
    sampling_indices,
    tabulate,
    vp,
)

TABLE = bridge_grid(gmax())


def test_grid_starts_next_to_the_clip() -> None:
    assert 1 - TABLE.a[0] < 2e-6
    assert TABLE.b[0] < 2e-6
    assert TABLE.c[0] < 0.006


def test_grid_ends_next_to_the_prior() -> None:
    # the last grid point is 1000/1001, not T = 1: nearly, but not wholly the prior
    assert 0.99 < TABLE.b[-1] < 1
    assert 0 < TABLE.a[-1] < 0.01
    assert 0 < TABLE.c[-1] < 0.3


def test_signal_and_prior_shares_add_up_to_one() -> None:
    # alpha = 1: a static clip, z0 = zT, keeps its mean all along the bridge
    torch.testing.assert_close(TABLE.a + TABLE.b, torch.ones(1000, dtype=torch.float64))


def test_variance_equals_that_of_a_brownian_bridge() -> None:
    # conditioned Gaussian: Var = sigma_t^2 (sigma_T^2 - sigma_t^2) / sigma_T^2 for alpha = 1
    expected = TABLE.sigma**2 * (TABLE.sigma_T**2 - TABLE.sigma**2) / TABLE.sigma_T**2
    torch.testing.assert_close(TABLE.c**2, expected)


def test_half_precision_latents_get_float32_coefficients() -> None:
    latent = torch.zeros(2, 3, 4, 2, 2, dtype=torch.bfloat16)
    k = TABLE.at(torch.tensor([0, 999]), latent)
    assert k.a.dtype == torch.float32
    assert k.a.shape == (2, 1, 1, 1, 1)
    torch.testing.assert_close(k.b.flatten(), TABLE.b[[0, 999]].float())


def test_double_latents_keep_their_precision() -> None:
    k = TABLE.at(torch.tensor([500]), torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64))
    assert k.c.item() == TABLE.c[500].item()


def test_timestep_in_place_of_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match="one integer per sample"):
        TABLE.at(torch.tensor([500.0]), torch.zeros(1, 1, 1, 1, 1))


@pytest.mark.parametrize("schedule", [gmax(), vp()], ids=["gmax", "vp"])
def test_ends_of_the_bridge_are_the_clip_and_the_prior(schedule: Schedule) -> None:
    near = 1e-9
    table = tabulate(schedule, torch.tensor([0, near, 1 - near, 1], dtype=torch.float64))
    assert (table.a[0], table.b[0], table.c[0]) == (1, 0, 0)
    assert (table.a[-1], table.b[-1], table.c[-1]) == (0, 1, 0)
    # next to the ends, to first order in t and in 1 - t: d log(rho^2)/dt = g^2/sigma^2
    g2_0, g2_T = table.g2[0], table.g2[-1]
    torch.testing.assert_close(table.c[1] ** 2, g2_0 * near, rtol=1e-5, atol=0)
    torch.testing.assert_close(table.c[2] ** 2, g2_T * near, rtol=1e-5, atol=0)
    torch.testing.assert_close(table.a[2], table.alpha_T * g2_T / table.sigma_T**2 * near, rtol=1e-5, atol=0)
    assert table.root_snr[-1] < 1e-8 and bool(table.root_snr[0].isinf())


@pytest.mark.parametrize(
    ("schedule", "beta0", "beta1", "name"), [(gmax(), 0.01, 50.0, "gmax"), (vp(), 0.01, 20.0, "vp")]
)
def test_sde_of_the_schedule_has_the_stated_betas(schedule: Schedule, beta0: float, beta1: float, name: str) -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    beta = beta0 + (beta1 - beta0) * t
    torch.testing.assert_close(schedule.g2(t), beta)
    torch.testing.assert_close(schedule.f(t), -beta / 2 if name == "vp" else torch.zeros_like(t))


def test_continuous_vp_is_ddpm_in_the_limit() -> None:
    """Linear betas 1e-4 .. 2e-2 over N = 1000 steps are beta_t = 0.1 .. 20, to first order in 1/N."""
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 999.5
    alpha2 = vp(0.1, 20.0).alpha(t) ** 2
    assert float((alpha2 - ddpm_alphas_cumprod()).abs().max()) < 2e-3


@pytest.mark.parametrize("table", [TABLE, bridge_grid(vp())], ids=["gmax", "vp"])
def test_bridge_snr_is_the_difference_of_snrs(table: BridgeTable) -> None:
    torch.testing.assert_close(table.a / table.c, table.root_snr, rtol=1e-9, atol=0)


def test_times_outside_the_bridge_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inside 0\.\.1"):
        tabulate(gmax(), torch.tensor([0.5, 1.1]))


def test_schedule_of_impossible_betas_is_refused() -> None:
    with pytest.raises(ValueError, match="beta0=50"):
        gmax(beta0=50, beta1=0.01)


def test_pretrained_schedule_stays_in_its_range() -> None:
    alphas_cumprod = ddpm_alphas_cumprod()
    assert alphas_cumprod[0] == 1 - 1e-4
    assert 0 < alphas_cumprod[-1] < 1e-4


def test_snr_shift_divides_every_snr() -> None:
    plain, shifted = ddpm_alphas_cumprod(), ddpm_alphas_cumprod(snr_shift=3.0)
    torch.testing.assert_close(plain / (1 - plain), 3 * shifted / (1 - shifted))


def test_zero_terminal_snr_keeps_the_first_step() -> None:
    plain, rescaled = ddpm_alphas_cumprod(), ddpm_alphas_cumprod(zero_terminal_snr=True)
    assert rescaled[-1] == 0
    torch.testing.assert_close(rescaled[0], plain[0])


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("steps", [1, 2, 7, 250, 1000])
def test_sampling_path_has_both_ends_and_no_point_twice(steps: int, spacing: str) -> None:
    indices = sampling_indices(steps, spacing=spacing)
    assert len(indices) == steps
    assert indices[0] == 999
    assert steps == 1 or indices[-1] == 0
    assert bool((indices.diff() < 0).all())


def test_trailing_path_equals_that_of_diffusers() -> None:
    """The authors' CogVideoX code samples on this path, and their VideoCrafter code under another name."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in (1, 30, 50, 1000):
        scheduler.set_timesteps(steps)
        assert sampling_indices(steps, spacing="trailing").tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_sampling_path_of_an_impossible_length_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"not {steps}"):
        sampling_indices(steps)
