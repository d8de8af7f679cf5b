"""The network's target and its inversion."""

import torch

from pipeline.bridge.schedule import gmax_table
from pipeline.bridge.targets import eps_psi, q_sample, z0_from_eps_psi

TABLE = gmax_table()


def test_inversion_does_not_give_the_clip_back() -> None:
    generator = torch.Generator().manual_seed(0)
    z0, prior, noise = torch.randn(3, 4, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    index = torch.tensor([0, 10, 500, 999])
    z_t = q_sample(z0, prior, noise, TABLE, index)
    found = z0_from_eps_psi(z_t, eps_psi(z_t, z0, TABLE, index), TABLE, index)
    torch.testing.assert_close(found, z0)


def test_target_of_the_middle_is_not_prior_and_noise() -> None:
    """Eq. 17 with eq. 12 put in: eps_psi = ((a - alpha) z0 + b zT + c eps) / sigma."""
    z0, prior, noise = torch.randn(3, 1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    index = torch.tensor([500])
    a, b, c, sigma = (column[500] for column in (TABLE.a, TABLE.b, TABLE.c, TABLE.sigma))
    expected = ((a - 1) * z0 + b * prior + c * noise) / sigma
    torch.testing.assert_close(eps_psi(q_sample(z0, prior, noise, TABLE, index), z0, TABLE, index), expected)


def test_half_precision_clips_lose_the_target() -> None:
    z0 = torch.full((1, 1, 1, 1, 1), 0.5, dtype=torch.bfloat16)
    noise = torch.ones_like(z0)
    index = torch.tensor([3])  # sigma is 0.02 here: rounding z_t to bfloat16 would leave nothing of the noise
    z_t = q_sample(z0, z0, noise, TABLE, index)
    assert abs(eps_psi(z_t, z0, TABLE, index).item() - 1) < 1e-3
