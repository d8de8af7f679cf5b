"""Proposition 3: the neural prior that eq. 8 trains is E[z0 | image, class], the mean, and no prior is nearer."""

import torch
from torch import Tensor

from pipeline.models.build import build_prior
from pipeline.models.prior import NeuralPrior, replicate
from pipeline.settings import ModelSettings

FRAMES, NOISE = 3, 0.5
TINY = ModelSettings(size=None, hidden_size=32, depth=2, num_heads=2, patch_size=2)


def mean_of(image: Tensor, y: Tensor) -> Tensor:
    """E[z0 | image, y], known: the picture fades in class 0 and turns negative in class 1, (B, F, C, h, w)."""
    weights = torch.tensor([[1.0, 0.6, 0.2], [1.0, 0.0, -1.0]])[y]
    return weights[:, :, None, None, None] * image[:, None]


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw images, classes and clips: the known mean, and noise that no prior can predict."""
    image = torch.randn(count, 1, 1, 1, generator=generator).expand(-1, 4, 2, 2).contiguous()
    y = torch.randint(2, (count,), generator=generator)
    mean = mean_of(image, y)
    return image, y, mean + NOISE * torch.randn(mean.shape, generator=generator)


def trained_prior(steps: int = 400) -> NeuralPrior:
    prior = build_prior(TINY, [FRAMES, 4, 2, 2], num_classes=2)
    prior.backbone.initialise(0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        image, y, z0 = draw(64, generator)
        loss = (prior(image, y) - z0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return prior.eval()


def test_regressed_prior_is_the_conditional_mean() -> None:
    prior = trained_prior()
    image, y, z0 = draw(512, torch.Generator().manual_seed(1))
    mean = mean_of(image, y)
    with torch.no_grad():
        found = prior(image, y)
    assert float((found - mean).square().mean()) < 0.03  # the clips themselves are 0.25 away from it
    # hence nearer to the clips than the replicated image, and within the noise of the best that can be done
    error, best, still = (float((p - z0).square().mean()) for p in (found, mean, replicate(image, FRAMES)))
    assert best <= error < best + 0.03 < still
