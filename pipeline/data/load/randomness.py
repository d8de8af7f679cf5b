"""Draw everything that is random in a training sample, from a generator of its own."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

TIMESTEPS = 1000


def generator(seed: int, stream: str, step: int, index: int) -> torch.Generator:
    """The generator of one sample: seeded by its place in the global batch, whichever worker makes it."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class SampleNoise(NamedTuple):
    """Random draws of one sample, in drawing order; batched, every field gets a leading dimension."""

    posterior_noise: Tensor  # (F, C, h, w)
    noise: Tensor  # (F, C, h, w)
    time: Tensor  # () int64 time index
    left_out: Tensor  # () uniform in 0..1, from which `dropped` chooses
    image_noise: Tensor  # (C, h, w)
    image_level: Tensor  # () standard normal
    seed: Tensor  # () int64


def draw(shape: tuple[int, ...], random: torch.Generator) -> SampleNoise:
    """Draw the randomness of a sample of latents (F, C, h, w)."""
    posterior_noise, noise = torch.randn((2, *shape), generator=random)
    return SampleNoise(
        posterior_noise,
        noise,
        torch.randint(TIMESTEPS, (), generator=random),
        torch.rand((), generator=random),
        torch.randn(shape[1:], generator=random),
        torch.randn((), generator=random),
        torch.randint(2**62, (), generator=random),
    )
