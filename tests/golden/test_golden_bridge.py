"""The bridge against numbers of the authors' own implementation (the .json files say how they were made)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.gaussian_bridge import watched
from safetensors.torch import load_file
from torch import Tensor

from pipeline.bridge.alignment import align, aligned_timesteps
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.loss import bridge_loss
from pipeline.bridge.samplers import bridge_clean, sde_first_order
from pipeline.bridge.schedule import bridge_grid, ddpm_alphas_cumprod, gmax, sampling_indices
from pipeline.bridge.targets import bridge_v, eps_psi, q_sample, z0_from_v
from pipeline.models.prior import replicate

HERE = Path(__file__).parent
GOLDEN = load_file(HERE / "bridge_seed0.safetensors")
COGVIDEOX = load_file(HERE / "cogvideox_bridge_seed0.safetensors")
TABLE = bridge_grid(gmax())
BRIDGES = {False: Bridge(TABLE), True: Bridge(TABLE, aligned_timesteps(TABLE, ddpm_alphas_cumprod()))}
DTYPES = (torch.float32, torch.float64)


def numbers(dtype: torch.dtype) -> dict[str, Tensor]:
    """The golden bridge file with its floating-point tensors in `dtype`."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in GOLDEN.items()}


def stated_network(image: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that bridge_seed0.json states, as a closure over the image frame (B, 1, C, h, w)."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        x = torch.cat([image, z], dim=1)
        return (0.3 * x + 0.01 * t.view(-1, 1, 1, 1, 1) / 1000 + 0.05 * x.roll(1, dims=1))[:, 1:]

    return denoise


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("alpha", "alphas"), ("sigma", "sigmas"), ("a", "coef_x0"), ("b", "coef_x1"), ("c", "sqrt_var")],
)
def test_coefficients_equal_the_authors(ours: str, theirs: str) -> None:
    for golden in (GOLDEN, COGVIDEOX):
        expected = golden.get(f"table.bridge_{theirs}")
        if expected is not None:
            torch.testing.assert_close(getattr(TABLE, ours), expected.double(), rtol=0, atol=1e-5)


def test_pretrained_schedule_equals_the_authors() -> None:
    torch.testing.assert_close(ddpm_alphas_cumprod(), GOLDEN["table.alphas_cumprod"], rtol=1e-12, atol=0)


def test_aligned_timesteps_equal_the_authors_latte() -> None:
    found = aligned_timesteps(TABLE, ddpm_alphas_cumprod(), edge="latte")
    torch.testing.assert_close(found, GOLDEN["table.bridge_aligned_t"], rtol=0, atol=0.01)


def test_aligned_timesteps_equal_the_authors_cogvideox() -> None:
    found = aligned_timesteps(TABLE, COGVIDEOX["diffusion.alphas_cumprod"], edge="cogvideox")
    torch.testing.assert_close(found.float(), COGVIDEOX["table.bridge_aligned_t"], rtol=0, atol=0.01)
    torch.testing.assert_close(found[COGVIDEOX["t"]].float(), COGVIDEOX["aligned_t"], rtol=0, atol=0.01)


def test_aligned_latent_equals_the_authors() -> None:
    found = align(COGVIDEOX["x_t"], COGVIDEOX["prior"], TABLE, COGVIDEOX["t"])
    assert relative_error(found, COGVIDEOX["aligned_x_t"]) < 1e-6


def test_pretrained_schedule_equals_cogvideox() -> None:
    found = ddpm_alphas_cumprod(0.00085, 0.012, scaled=True, snr_shift=3.0, zero_terminal_snr=True)
    torch.testing.assert_close(found, COGVIDEOX["diffusion.alphas_cumprod"], rtol=1e-9, atol=1e-12)


def test_v_target_inversion_and_weight_equal_the_authors_cogvideox() -> None:
    x0, prior, noise, t = (COGVIDEOX[name] for name in ("x0", "prior", "noise", "t"))
    assert relative_error(q_sample(x0, prior, noise, TABLE, t), COGVIDEOX["x_t"]) < 1e-6
    assert relative_error(bridge_v(x0, noise, TABLE, t), COGVIDEOX["v_target"]) < 1e-6
    found = z0_from_v(COGVIDEOX["x_t"], prior, COGVIDEOX["v_target"], TABLE, t)
    assert relative_error(found, COGVIDEOX["x0_from_v"]) < 1e-5
    weight = Bridge(TABLE, target="v", weighting="noise").loss_weight(t)
    torch.testing.assert_close(weight.float(), COGVIDEOX["weight"].flatten(), rtol=1e-5, atol=0)


def test_sampler_step_equals_the_authors() -> None:
    """One step from index 990 to 970, with the golden v targets as the network's answer."""
    x_t, prior = COGVIDEOX["x_t"], COGVIDEOX["prior"]
    visited: list[Tensor] = []
    clean = watched(bridge_clean(lambda z, t: COGVIDEOX["v_target"], Bridge(TABLE, target="v"), prior), visited)
    sde_first_order(clean, TABLE, x_t, torch.tensor([990, 970]), noise=lambda k: COGVIDEOX["step_noise"])
    assert relative_error(visited[1], COGVIDEOX["step"]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_process_and_target_equal_the_authors(dtype: torch.dtype) -> None:
    g = numbers(dtype)
    z_t = q_sample(g["x0"], replicate(g["image"][:, 0], 4), g["noise"], TABLE, g["t"])
    assert relative_error(z_t, g["q_sample"]) < 1e-6
    assert relative_error(eps_psi(z_t, g["x0"], TABLE, g["t"]), g["target_eps_psi"]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saf", [False, True])
def test_loss_equals_the_authors(saf: bool, dtype: torch.dtype) -> None:
    g = numbers(dtype)
    prior = replicate(g["image"][:, 0], 4)
    found = bridge_loss(stated_network(g["image"]), BRIDGES[saf], g["x0"], prior, g["t"], g["noise"])
    torch.testing.assert_close(found, g[f"loss.align{int(saf)}"], rtol=5e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saf", [False, True])
@pytest.mark.parametrize("steps", [20, 50])
def test_trajectory_equals_the_authors(steps: int, saf: bool, dtype: torch.dtype) -> None:
    g = numbers(dtype)
    indices = sampling_indices(steps)
    assert indices.tolist() == g[f"sde{steps}.timesteps"].flip(0).tolist()
    noises = g[f"sde{steps}.align{int(saf)}.noise"]
    prior = replicate(g["image"][:, 0], 4)
    clean = bridge_clean(stated_network(g["image"]), BRIDGES[saf], prior)
    found = sde_first_order(clean, TABLE, prior, indices, lambda k: noises[k])
    assert len(noises) == steps - 1
    assert relative_error(found, g[f"sde{steps}.align{int(saf)}.out"]) < 1e-6
