"""All that is random in a training sample, from a generator seeded by (seed, stream, step, index in the global batch)."""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

TIMESTEPS = 1000


def generator(seed: int, stream: str, step: int, index: int) -> torch.Generator:
    """The randomness of one sample, whatever the worker that it falls to."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class SampleNoise(NamedTuple):
    """All that is random in a sample, in the order in which it is drawn; of a batch, all with a first dimension more."""

    posterior_noise: Tensor  # (F, C, h, w)
    noise: Tensor  # (F, C, h, w)
    time: Tensor  # () int64, its index
    left_out: Tensor  # () uniform in 0..1, what `dropped` goes by
    image_noise: Tensor  # (C, h, w)
    image_level: Tensor  # () standard normal
    seed: Tensor  # () int64


def draw(shape: tuple[int, ...], random: torch.Generator) -> SampleNoise:
    """What is random in a sample of latents (F, C, h, w)."""
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
