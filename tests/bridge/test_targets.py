"""The network's target and its inversion."""

import pytest
import torch
from torch import Tensor

from pipeline.bridge.bridge import Bridge
from pipeline.bridge.schedule import BridgeTable, bridge_grid, gmax, vp
from pipeline.bridge.targets import Target, eps_psi, h_transform, q_sample, score_from_eps_psi, z0_from_eps_psi

TABLE = bridge_grid(gmax())
VP = bridge_grid(vp())


def test_inversion_gives_the_clip_back() -> None:
    generator = torch.Generator().manual_seed(0)
    z0, prior, noise = torch.randn(3, 4, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    index = torch.tensor([0, 10, 500, 999])
    z_t = q_sample(z0, prior, noise, TABLE, index)
    found = z0_from_eps_psi(z_t, eps_psi(z_t, z0, TABLE, index), TABLE, index)
    torch.testing.assert_close(found, z0)


def test_target_of_the_middle_mixes_clip_prior_and_noise() -> None:
    """Eq. 17 with eq. 12 put in: eps_psi = ((a - alpha) z0 + b zT + c eps) / sigma."""
    z0, prior, noise = torch.randn(3, 1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    index = torch.tensor([500])
    a, b, c, sigma = (column[500] for column in (TABLE.a, TABLE.b, TABLE.c, TABLE.sigma))
    expected = ((a - 1) * z0 + b * prior + c * noise) / sigma
    torch.testing.assert_close(eps_psi(q_sample(z0, prior, noise, TABLE, index), z0, TABLE, index), expected)


def test_half_precision_clips_keep_the_target() -> None:
    z0 = torch.full((1, 1, 1, 1, 1), 0.5, dtype=torch.bfloat16)
    noise = torch.ones_like(z0)
    index = torch.tensor([3])  # sigma is 0.02 here: rounding z_t to bfloat16 would leave nothing of the noise
    z_t = q_sample(z0, z0, noise, TABLE, index)
    assert abs(eps_psi(z_t, z0, TABLE, index).item() - 1) < 1e-3


def latents(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z0, prior, noise = torch.randn(3, count, 2, 1, 2, 2, generator=generator, dtype=torch.float64)
    return z0, prior, noise


@pytest.mark.parametrize("table", [TABLE, VP], ids=["gmax", "vp"])
@pytest.mark.parametrize("kind", ["noise", "v", "z0"])
def test_inversion_of_every_target_gives_the_clip_back(kind: Target, table: BridgeTable) -> None:
    z0, prior, noise = latents(4)
    index = torch.tensor([0, 10, 500, 998])
    z_t = q_sample(z0, prior, noise, table, index)
    bridge = Bridge(table, target=kind)
    answer = bridge.target_of(z_t, z0, noise, index)
    torch.testing.assert_close(bridge.clean_of(z_t, prior, answer, index), z0)


@pytest.mark.parametrize("kind", ["v", "z0"])
def test_weighted_error_equals_that_of_eps_psi(kind: Target) -> None:
    """The weight is the squared error of eps_psi that an error of one in this parametrisation makes."""
    z0, prior, noise = latents(3)
    index = torch.tensor([3, 500, 990])
    z_t = q_sample(z0, prior, noise, VP, index)
    bridge = Bridge(VP, target=kind, weighting="noise")
    estimate = bridge.clean_of(z_t, prior, bridge.target_of(z_t, z0, noise, index) + 0.1, index)
    error = (eps_psi(z_t, estimate, VP, index) - eps_psi(z_t, z0, VP, index)).square().flatten(1).mean(1)
    torch.testing.assert_close(0.1**2 * bridge.loss_weight(index), error)
    assert Bridge(VP, target=kind).loss_weight(index).tolist() == [1, 1, 1]


@pytest.mark.parametrize("table", [TABLE, VP], ids=["gmax", "vp"])
def test_h_is_the_gradient_of_the_transition_density(table: BridgeTable) -> None:
    """p(z_T | z_t) = N(r z_t, sigma_T^2 - r^2 sigma_t^2), r = alpha_T/alpha_t; its gradient by autograd (eq. 15)."""
    z0, prior, noise = latents(3)
    index = torch.tensor([5, 500, 990])
    z_t = q_sample(z0, prior, noise, table, index).requires_grad_()
    r = (table.alpha_T / table.alpha[index]).view(-1, 1, 1, 1, 1)
    variance = table.sigma_T**2 - r**2 * table.sigma[index].view(-1, 1, 1, 1, 1) ** 2
    density = torch.distributions.Normal(r * z_t, variance.sqrt()).log_prob(prior).sum()
    (expected,) = torch.autograd.grad(density, z_t)
    torch.testing.assert_close(h_transform(z_t, prior, table, index), expected)


@pytest.mark.parametrize("table", [TABLE, VP], ids=["gmax", "vp"])
def test_score_is_the_gradient_of_the_bridge_marginal(table: BridgeTable) -> None:
    """Given z_0, eps_psi is exact, and so is eq. 16: the gradient of log N(z_t; a z_0 + b z_T, c^2), by autograd."""
    z0, prior, noise = latents(3)
    index = torch.tensor([5, 500, 990])
    z_t = q_sample(z0, prior, noise, table, index).requires_grad_()
    a, b, c = (column[index].view(-1, 1, 1, 1, 1) for column in (table.a, table.b, table.c))
    (expected,) = torch.autograd.grad(torch.distributions.Normal(a * z0 + b * prior, c).log_prob(z_t).sum(), z_t)
    score = score_from_eps_psi(z_t, prior, eps_psi(z_t, z0, table, index), table, index)
    torch.testing.assert_close(score, expected)
