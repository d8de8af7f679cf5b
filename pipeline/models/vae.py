"""The image VAE, frame by frame: a diffusers AutoencoderKL with its scaling factor and the hash of its weights."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.models.vae_files import derive_config, find_vae, read_state, unloadable, vae_identity
from pipeline.models.weights import load_strict
from pipeline.settings import LATENT_CHANNELS, VAE_DOWNSAMPLING, UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger("vae")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Vae:
    """Frames in and out are uint8 RGB (N, H, W, 3); latents are (N, C, h, w) with h = H / 8, w = W / 8."""

    module: "AutoencoderKL"
    scaling_factor: float
    weights_hash: str  # of the weights' values, see vae_files.hash_arrays

    @property
    def device(self) -> torch.device:
        return self.module.device

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and log-variance of the frames, each (N, C, h, w) float32, unscaled; log-variances lie in -30..20.

        Frames are uploaded as bytes, from pinned memory without waiting, and the result is not waited for.
        """
        pixels = frames.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        pixels = pixels.to(self.module.dtype, memory_format=torch.channels_last)
        posterior = self.module.encode(pixels).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames of scaled latents (N, C, h, w)."""
        pixels = self.module.decode((latents / self.scaling_factor).to(self.device, self.module.dtype)).sample
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def load_vae(path: str, dtype: str = "float32", device: str | torch.device = "cpu") -> Vae:
    """The VAE of a diffusers folder, a latent diffusion checkpoint, a hub name, or "shipped:vae". Raises UserError."""
    files = find_vae(path)
    state, _ = read_state(files)
    module = _empty_module(path, files.config or derive_config(state))
    down = 2 ** (len(module.config.block_out_channels) - 1)
    if down != VAE_DOWNSAMPLING or module.config.latent_channels != LATENT_CHANNELS:
        raise UserError(
            f"vae.path = {path}: {down}x downsampling to {module.config.latent_channels} channels; the pipeline expects "
            f"{VAE_DOWNSAMPLING}x and {LATENT_CHANNELS}, as the Stable Diffusion VAE has"
        )
    load_strict(module, state, f"vae.path = {path}")
    module = module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    # not module.to(), which diffusers wraps in a warning about layers to be kept in float32, of which there are none
    torch.nn.Module.to(module, DTYPES[dtype])
    digest, scaling_factor = vae_identity(path)
    return Vae(module, scaling_factor, digest)


def _empty_module(path: str, config: dict[str, object]) -> "AutoencoderKL":
    """An AutoencoderKL with memory for its weights, none of them set: random initialisation would take a second."""
    from diffusers import AutoencoderKL  # seconds of import, which training does without

    try:
        with torch.device("meta"):
            module = AutoencoderKL.from_config(config)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError) as error:
        raise unloadable(path, f"diffusers refuses its configuration: {error}") from error
    return module.to_empty(device="cpu")


def compile_encoder(vae: Vae, frames: torch.Tensor) -> bool:
    """Compile the encoder for batches of the shape of `frames`; False, with a warning, where that is not possible."""
    encoder = vae.module.encoder
    vae.module.encoder = torch.compile(encoder, dynamic=False)
    try:
        vae.encode(frames)
    except torch.OutOfMemoryError:
        pass  # not for the compiler's sake; whoever encodes deals with it
    except RuntimeError as error:  # all that Dynamo, Inductor and Triton raise
        vae.module.encoder = encoder
        reason = " ".join(str(error).split("\n")[:2])
        log.warning("torch.compile failed (%s): encoding goes on without it; vae.compile false spares the try", reason)
        return False
    return True


def sample_posterior(
    mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor, scaling_factor: float
) -> torch.Tensor:
    """Scaled sample of the posterior, of the shape of `mean`; log-variances are clamped as in AutoencoderKL."""
    return scaling_factor * (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise)
