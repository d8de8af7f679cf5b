"""The VAE, with its scaling factor and the hash of its weights.

It is a diffusers AutoencoderKL, which encodes frame by frame, or CogVideoX's VAE, which encodes the first video frame
alone and every four further frames as one latent frame.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..settings import VAE_DOWNSAMPLING
from .checkpoints.weights import load_strict
from .files.vae import IMAGE_VAE, derive_config, find_vae, naming_vae, read_state, vae_geometry, vae_identity

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLCogVideoX

log = logging.getLogger("vae")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Vae:
    """Encode and decode uint8 RGB frames (N, H, W, 3); latents are (N, C, h, w) with h = H / 8, w = W / 8."""

    module: "AutoencoderKL | AutoencoderKLCogVideoX"
    scaling_factor: float
    weights_hash: str  # see hash_arrays in files/vae.py
    temporal: int = 1  # video frames per latent frame

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.module.device

    @torch.inference_mode()
    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance (in -30..20), each (N, C, h, w) float32, unscaled.

        Uploads frames as bytes, asynchronously from pinned memory, and does not wait for the result.
        """
        return self._posterior(self._pixels(frames).to(self.module.dtype, memory_format=torch.channels_last))

    @torch.inference_mode()
    def encode_clips(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips (B, F, H, W, 3) like frames; return (B, F', C, h, w).

        F' is F for an image VAE, and (F - 1) / temporal + 1 for a video VAE.
        """
        if self.temporal == 1:
            mean, logvar = (values.unflatten(0, clips.shape[:2]) for values in self.encode(clips.flatten(0, 1)))
            return mean, logvar
        mean, logvar = self._posterior(self._pixels(clips).to(self.module.dtype))  # (B, C, F', h, w)
        return mean.transpose(1, 2), logvar.transpose(1, 2)

    def _pixels(self, frames: Tensor) -> Tensor:
        """Turn uint8 (..., 3) into float32 in -1..1 on the VAE's device, channels second."""
        return frames.to(self.device, non_blocking=True).movedim(-1, 1).float().div_(127.5).sub_(1)

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.module.encode(pixels).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.inference_mode()
    def decode_clips(self, latents: Tensor, at_once: int) -> Tensor:
        """Decode scaled latents (B, F', C, h, w) to uint8 (B, F, H, W, 3) on the CPU.

        An image VAE decodes `at_once` frames together; a video VAE decodes clip by clip.
        """
        if self.temporal == 1:
            parts = [self.decode(part) for part in latents.flatten(0, 1).split(at_once)]
            return torch.cat(parts).unflatten(0, latents.shape[:2])
        return torch.cat([self.decode(clip) for clip in latents.transpose(1, 2).split(1)])

    def decode_image(self, image_latent: Tensor) -> Tensor:
        """Decode scaled latents of single images (B, C, h, w) to pixels (B, 3, H, W) in -1..1."""
        if self.temporal > 1:
            return self._decoded(image_latent[:, :, None])[:, :, 0].float().clamp(-1, 1)
        return self._decoded(image_latent).float().clamp(-1, 1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (N, C, ..., h, w) to uint8 frames (N, ..., H, W, 3) on the CPU."""
        return ((self._decoded(latents).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.module.decode((latents / self.scaling_factor).to(self.device, self.module.dtype)).sample


def load_vae(path: str, dtype: str = "float32", device: str | torch.device = "cpu") -> Vae:
    """Load the VAE of a diffusers folder, latent diffusion checkpoint, hub name or "shipped:vae". Raises UserError."""
    files = find_vae(path)
    with naming_vae(path):
        state, _ = read_state(files.weights)
        module = _empty_module(files.config or derive_config(state))
    channels, temporal = vae_geometry(path)
    down = 2 ** (len(module.config.block_out_channels) - 1)
    if down != VAE_DOWNSAMPLING or module.config.latent_channels != channels:
        raise UserError(
            f"vae.path = {path}: {down}x downsampling to {module.config.latent_channels} channels; the pipeline "
            f"expects {VAE_DOWNSAMPLING}x and {channels}, as the Stable Diffusion VAE has"
        )
    load_strict(module, state, f"vae.path = {path}")
    layout = torch.channels_last if temporal == 1 else torch.contiguous_format
    module = module.eval().requires_grad_(False).to(device, memory_format=layout)
    # not module.to(): diffusers' version warns about layers to keep in float32, and there are none
    torch.nn.Module.to(module, DTYPES[dtype])
    digest, scaling_factor = vae_identity(path)
    return Vae(module, scaling_factor, digest, temporal)


def _empty_module(config: dict[str, object]) -> "AutoencoderKL | AutoencoderKLCogVideoX":
    """Build a VAE with uninitialised weights: random initialisation would take a second."""
    import diffusers  # slow import; training skips it

    kind = getattr(diffusers, str(config.get("_class_name", IMAGE_VAE)))
    try:
        with torch.device("meta"):
            module = kind.from_config(config)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"diffusers rejects its configuration: {error}") from error
    return module.to_empty(device="cpu")


def compile_encoder(vae: Vae, frames: Tensor) -> bool:
    """Compile the encoder for batches shaped like `frames`. If compilation fails, log a warning and return False."""
    if vae.temporal > 1:
        return False  # its convolutions keep earlier frames in attributes between calls
    encoder = vae.module.encoder
    vae.module.encoder = torch.compile(encoder, dynamic=False)
    try:
        vae.encode(frames)
    except torch.OutOfMemoryError:
        pass  # not the compiler's fault; the caller handles it when it encodes
    except RuntimeError as error:  # the base class of the errors of Dynamo, Inductor and Triton
        vae.module.encoder = encoder
        reason = " ".join(str(error).split("\n")[:2])
        log.warning(
            "torch.compile failed (%s): encoding goes on without it; set vae.compile false to skip the attempt", reason
        )
        return False
    return True


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """Sample the posterior and scale the sample, shaped like `mean`; clamps log-variances as AutoencoderKL does."""
    return scaling_factor * (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise)
