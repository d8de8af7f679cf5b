"""A VAE of the Stable Diffusion VAE's interface with random weights, small enough for tests."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        )


def save_tiny_vae(folder: Path, seed: int = 0) -> str:
    """Write the VAE of this seed to `folder`, and return that as a path for vae.path."""
    tiny_vae(seed).save_pretrained(folder)
    return str(folder)
