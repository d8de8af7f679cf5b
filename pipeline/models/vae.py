"""The image VAE, frame by frame: a diffusers AutoencoderKL with its scaling factor and the hash of its weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.models.build import shipped_path
from pipeline.settings import LATENT_CHANNELS, VAE_DOWNSAMPLING, UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Vae:
    """Frames in and out are uint8 RGB (N, H, W, 3); latents are (N, C, h, w) with h = H / 8, w = W / 8."""

    module: "AutoencoderKL"
    scaling_factor: float
    weights_hash: str  # SHA-256 of the weights file

    @property
    def device(self) -> torch.device:
        return self.module.device

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and log-variance of the frames, each (N, C, h, w) float32, unscaled."""
        pixels = frames.to(self.device).permute(0, 3, 1, 2).to(self.module.dtype) / 127.5 - 1
        posterior = self.module.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames of scaled latents (N, C, h, w)."""
        pixels = self.module.decode((latents / self.scaling_factor).to(self.device, self.module.dtype)).sample
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()


def load_vae(path: str, dtype: str = "float32", device: str | torch.device = "cpu") -> Vae:
    """The VAE of a local diffusers folder, a hub name, or "shipped:vae". Raises UserError."""
    from diffusers import AutoencoderKL  # seconds of import, which training does without

    folder = shipped_path(path)
    try:
        module = AutoencoderKL.from_pretrained(
            folder, torch_dtype=DTYPES[dtype], use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"vae.path = {path}: no AutoencoderKL could be loaded ({reason}); give a diffusers folder with config.json and "
            "diffusion_pytorch_model.safetensors, a hub name, or shipped:vae"
        ) from error
    down = 2 ** (len(module.config.block_out_channels) - 1)
    if down != VAE_DOWNSAMPLING or module.config.latent_channels != LATENT_CHANNELS:
        raise UserError(
            f"vae.path = {path}: {down}x downsampling to {module.config.latent_channels} channels; the pipeline expects "
            f"{VAE_DOWNSAMPLING}x and {LATENT_CHANNELS}, as the Stable Diffusion VAE has"
        )
    module = module.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return Vae(module, float(module.config.scaling_factor), _weights_hash(folder, module))


def sample_posterior(
    mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor, scaling_factor: float
) -> torch.Tensor:
    """Scaled sample of the posterior, of the shape of `mean`; log-variances are clamped as in AutoencoderKL."""
    return scaling_factor * (mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise)


def _weights_hash(folder: str, module: "AutoencoderKL") -> str:
    local = Path(folder) / "diffusion_pytorch_model.safetensors"
    if local.is_file():
        with open(local, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
