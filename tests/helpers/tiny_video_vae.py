"""A VAE of the interface of CogVideoX's with random weights, small enough for tests."""

from pathlib import Path

import torch


def save_tiny_video_vae(folder: Path, seed: int = 0) -> str:
    """Write the VAE of this seed to `folder`, and return that as a path for vae.path."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), latent_channels=16, norm_num_groups=4, layers_per_block=1
        )
    vae.save_pretrained(folder)
    return str(folder)
