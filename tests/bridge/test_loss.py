"""Losses are zero for a perfect network, give one number per sample, and reach the network with gradients."""

from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.bridge.alignment import aligned_timesteps
from pipeline.bridge.bridge import Bridge
from pipeline.bridge.loss import bridge_loss, diffusion_loss
from pipeline.bridge.samplers import diffusion_clean
from pipeline.bridge.schedule import bridge_grid, ddpm_alphas_cumprod, gmax
from pipeline.bridge.targets import Target, eps_psi, q_sample

TABLE = bridge_grid(gmax())
BRIDGE = Bridge(TABLE)
ALPHAS_CUMPROD = ddpm_alphas_cumprod()
ALIGNED = aligned_timesteps(TABLE, ALPHAS_CUMPROD)
INDEX = torch.tensor([10, 990])
Z0, PRIOR, NOISE = torch.randn(3, 2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("aligned_t", [None, ALIGNED])
def test_perfect_network_has_no_loss(aligned_t: Tensor | None) -> None:
    target = eps_psi(q_sample(Z0, PRIOR, NOISE, TABLE, INDEX), Z0, TABLE, INDEX)
    assert bridge_loss(lambda z, t: target, Bridge(TABLE, aligned_t), Z0, PRIOR, INDEX, NOISE).tolist() == [0, 0]


@pytest.mark.parametrize("target", ["noise", "v", "z0"])
def test_perfect_diffusion_network_has_no_loss(target: Target) -> None:
    """A network is perfect if the sampler gets z0 from its answer."""
    signal, deviation = (
        root.sqrt().view(-1, 1, 1, 1, 1) for root in (ALPHAS_CUMPROD[INDEX], 1 - ALPHAS_CUMPROD[INDEX])
    )
    answer = {"noise": NOISE, "v": signal * NOISE - deviation * Z0, "z0": Z0}[target].float()
    assert diffusion_loss(lambda z, t: answer, ALPHAS_CUMPROD, Z0, INDEX, NOISE, target).max() < 1e-12

    def answer_of(number: int, z: Tensor, t: Tensor) -> Tensor:
        return answer[number : number + 1]

    for number, s in enumerate(INDEX):
        clean = diffusion_clean(partial(answer_of, number), ALPHAS_CUMPROD, target)
        z = (signal * Z0 + deviation * NOISE)[number : number + 1]
        torch.testing.assert_close(clean(z, s)[0], Z0[number].double(), atol=1e-4, rtol=1e-4, check_dtype=False)


def test_diffusion_latent_is_variance_preserving() -> None:
    def inverted(z: Tensor, t: Tensor) -> Tensor:
        abar = ALPHAS_CUMPROD[t.long()].float().view(-1, 1, 1, 1, 1)
        return (z - abar.sqrt() * Z0) / (1 - abar).sqrt()

    found = diffusion_loss(inverted, ALPHAS_CUMPROD, Z0, INDEX, NOISE)
    torch.testing.assert_close(found, torch.zeros(2), atol=1e-9, rtol=0)


def test_every_sample_of_a_batch_has_its_own_loss() -> None:
    alone = [
        bridge_loss(lambda z, t: z, BRIDGE, Z0[i : i + 1], PRIOR[i : i + 1], INDEX[i : i + 1], NOISE[i : i + 1])
        for i in range(2)
    ]
    together = bridge_loss(lambda z, t: z, BRIDGE, Z0, PRIOR, INDEX, NOISE)
    torch.testing.assert_close(together, torch.cat(alone))


def test_aligned_network_sees_the_aligned_time() -> None:
    seen: list[Tensor] = []

    def network(z: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return z

    bridge_loss(network, Bridge(TABLE, ALIGNED), Z0, PRIOR, INDEX, NOISE)
    torch.testing.assert_close(seen[0], ALIGNED[INDEX].float())


def test_network_gets_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    bridge_loss(lambda z, t: weight * z, BRIDGE, Z0, PRIOR, INDEX, NOISE).mean().backward()
    assert weight.grad is not None
    assert weight.grad != 0


def test_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the network predicts"):
        bridge_loss(lambda z, t: z[:, :1], BRIDGE, Z0, PRIOR, INDEX, NOISE)


def test_half_precision_network_gives_a_float32_loss() -> None:
    def half(z: Tensor, t: Tensor) -> Tensor:
        return z.bfloat16()

    z0, prior, noise = Z0.bfloat16(), PRIOR.bfloat16(), NOISE.bfloat16()
    assert bridge_loss(half, BRIDGE, z0, prior, INDEX, noise).dtype == torch.float32
    assert diffusion_loss(half, ALPHAS_CUMPROD, z0, INDEX, noise).dtype == torch.float32
