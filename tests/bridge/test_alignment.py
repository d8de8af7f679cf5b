"""SAF: the aligned latent is a latent of the pre-trained model, at the step with its SNR."""

import pytest
import torch

from pipeline.bridge.alignment import Edge, align, aligned_timesteps
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.schedule import bridge_grid, ddpm_alphas_cumprod, gmax
from pipeline.bridge.targets import q_sample

TABLE = bridge_grid(gmax())
ALPHAS_CUMPROD = ddpm_alphas_cumprod()


def test_aligned_latent_is_the_diffusion_models() -> None:
    """z~_t of eq. 24 is sqrt(abar) z0 + sqrt(1 - abar) eps with the SNR of t~."""
    generator = torch.Generator().manual_seed(0)
    z0, prior, noise = torch.randn(3, 1, 2, 1, 2, 2, generator=generator, dtype=torch.float64)
    index = torch.tensor([600])
    t = aligned_timesteps(TABLE, ALPHAS_CUMPROD)[index]
    lower, share = int(t), float(t % 1)
    above, below = (ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)).sqrt()[lower : lower + 2]
    root_snr = torch.lerp(above, below, share)
    abar = root_snr**2 / (1 + root_snr**2)
    found = align(q_sample(z0, prior, noise, TABLE, index), prior, TABLE, index)
    torch.testing.assert_close(found, abar.sqrt() * z0 + (1 - abar).sqrt() * noise)


@pytest.mark.parametrize("edge", ["latte", "cogvideox"])
def test_aligned_timesteps_stay_in_the_pretrained_grid(edge: Edge) -> None:
    t = aligned_timesteps(TABLE, ALPHAS_CUMPROD, edge=edge)
    assert t.shape == (1000,)
    assert t.dtype == torch.float64
    assert float(t.min()) >= 0
    assert float(t.max()) <= 999
    assert bool((t.diff() > 0).all())


def test_edge_conventions_differ_at_the_edge_alone() -> None:
    latte = aligned_timesteps(TABLE, ALPHAS_CUMPROD, edge="latte")
    cogvideox = aligned_timesteps(TABLE, ALPHAS_CUMPROD, edge="cogvideox")
    assert latte[0] == 0
    assert 0 < cogvideox[0] < 1
    beyond = latte >= 1
    torch.testing.assert_close(latte[beyond], cogvideox[beyond])


def test_bridge_below_the_pretrained_grid_gets_its_last_step() -> None:
    short = ddpm_alphas_cumprod(steps=100)
    assert aligned_timesteps(TABLE, short)[-1] == 99


def test_videocrafters_timesteps_below_its_grid_go_on_to_no_signal() -> None:
    """Its last step still has sqrt(SNR) = 0.069: the authors' code interpolates from there to t~ = 1000 at SNR 0."""
    alphas_cumprod = ddpm_alphas_cumprod(0.00085, 0.012, scaled=True)
    t = aligned_timesteps(TABLE, alphas_cumprod, edge="cogvideox")
    last = (alphas_cumprod[-1] / (1 - alphas_cumprod[-1])).sqrt()
    below = TABLE.root_snr < last
    assert int(below.sum()) == 53
    torch.testing.assert_close(t[below], 1000 - TABLE.root_snr[below] / last)
    torch.testing.assert_close(t[~below][10:], aligned_timesteps(TABLE, alphas_cumprod)[~below][10:])


def test_unknown_edge_is_refused() -> None:
    with pytest.raises(ValueError, match="latte, cogvideox"):
        aligned_timesteps(TABLE, ALPHAS_CUMPROD, edge="videocrafter")  # type: ignore[arg-type]


def test_schedule_that_rises_is_refused() -> None:
    with pytest.raises(ValueError, match="must decrease"):
        aligned_timesteps(TABLE, ALPHAS_CUMPROD.flip(0))


def test_alignment_leaves_the_callers_schedule_as_it_is() -> None:
    before = ALPHAS_CUMPROD.clone()
    aligned_timesteps(TABLE, ALPHAS_CUMPROD, edge="cogvideox")
    assert torch.equal(ALPHAS_CUMPROD, before)


def test_unaligned_network_sees_the_latent_and_its_index() -> None:
    z = torch.ones(2, 1, 1, 1, 1)
    seen, t = Bridge(TABLE).network_input(z, torch.zeros_like(z), torch.tensor([3, 999]))
    assert seen is z
    assert t.tolist() == [3.0, 999.0]
    assert t.dtype == torch.float32
