"""TimeNoise's levels and Analytic-Init's start, against the distributions that the paper states."""

import pytest
import torch

from pipeline.bridge.leakage import add_time_noise, analytic_init, time_noise_level


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_level_is_logit_normal_about_mu() -> None:
    """logit(beta_s / beta_m) ~ N(2 t^a - 1, 1)."""
    for t, power in ((0.2, 5.0), (0.9, 5.0), (0.9, 1.0)):
        level = time_noise_level(drawn(20000), torch.full((20000,), t), beta_m=25.0, power=power)
        logit = (level / 25).logit()
        assert abs(float(logit.mean()) - (2 * t**power - 1)) < 0.03
        assert abs(float(logit.std()) - 1) < 0.03


def test_late_times_get_more_noise() -> None:
    level = time_noise_level(torch.zeros(5), torch.linspace(0, 1, 5), beta_m=2.0)
    assert bool((level.diff() > 0).all())
    assert float(level[0]) > 0 and float(level[-1]) < 2


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 16, 32)], ids=["latent", "tokens"])
def test_noise_has_the_deviation_of_its_level(shape: tuple[int, ...]) -> None:
    condition, level = drawn(*shape, seed=1), torch.tensor([0.0, 1.0, 30.0])
    noise = add_time_noise(condition, drawn(*shape), level) - condition
    assert float(noise[0].abs().max()) == 0
    torch.testing.assert_close(noise[2], 30 * drawn(*shape)[2])
    with pytest.raises(ValueError, match="one level per sample"):
        add_time_noise(condition, drawn(*shape), level[:2])


@pytest.mark.parametrize("variance_exploding", [False, True])
def test_start_is_the_gaussian_nearest_to_the_marginal(variance_exploding: bool) -> None:
    """Proposition 1: no isotropic Gaussian has a smaller KL from q(z_M) than analytic_init's; data are a mixture."""
    alpha, sigma = (1.0, 5.0) if variance_exploding else (0.6, 0.8)
    centres = drawn(2, 6, seed=3)
    data = centres[torch.arange(400) % 2] + 0.3 * drawn(400, 6, seed=4)
    mean, variance = data.mean(0), float(data.var(0, correction=0).mean())
    marginal = alpha * data.repeat(500, 1) + sigma * drawn(200000, 6, seed=5)
    start = analytic_init(mean, variance, alpha, sigma, drawn(200000, 6, seed=6))
    location, deviation = start.mean(0), float((start - start.mean(0)).square().mean().sqrt())

    def cross_entropy(location: torch.Tensor, deviation: float) -> float:
        """-E_q log N(location, deviation^2): the KL but for q's entropy."""
        return -float(torch.distributions.Normal(location, deviation).log_prob(marginal).sum(1).mean())

    best = cross_entropy(location, deviation)
    assert best < cross_entropy(location, 1.1 * deviation) and best < cross_entropy(location, 0.9 * deviation)
    assert best < cross_entropy(location + 0.2, deviation)
    torch.testing.assert_close(location, marginal.mean(0), atol=0.05, rtol=0)
