"""Train the tiny VAE that ships with the package: a diffusers AutoencoderKL, in plain PyTorch and one process."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.optim.lr_scheduler import LambdaLR

from ..train.optimisation import Muon
from .detector import to_input

REPORT_EVERY = 500  # steps


@dataclass(frozen=True)
class VaeTraining:
    """Settings that the shipped VAE was trained with."""

    channels: tuple[int, ...] = (16, 16, 48, 64)  # four levels: downsampling by 8, like the SD VAE
    steps: int = 5000
    batch: int = 4
    muon_rate: float = 0.02  # for weight matrices and kernels
    adam_rate: float = 2e-3  # for biases and norms
    kl_weight: float = 1e-6  # relative to pixel errors in [-1, 1]
    square_weight: float = 4.0  # for the mean squared error, without which small objects hardly count
    edge_weight: float = 0.5  # for the error of finite differences; sharp outlines without a perceptual network
    seed: int = 0


def build_vae(training: VaeTraining) -> AutoencoderKL:
    """Build an untrained AutoencoderKL with the SD VAE's interface and the widths in `training`."""
    levels = len(training.channels)
    module = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=training.channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    assert module.quant_conv is not None
    with torch.no_grad():
        # start with little posterior noise: with unit noise, the default, half of the channels collapse to the prior
        module.quant_conv.weight[4:].mul_(0.1)
        module.quant_conv.bias[4:].fill_(-6.0)
    return module


def train(frames: torch.Tensor, training: VaeTraining) -> Iterator[tuple[int, AutoencoderKL, float]]:
    """Fit a VAE to `frames`, uint8 (N, H, W, 3).

    Yields (step, module, mean absolute pixel error since the last one) every REPORT_EVERY steps and at the end.
    """
    torch.manual_seed(training.seed)  # diffusers' modules draw their weights from the global generator
    generator = torch.Generator().manual_seed(training.seed)
    module = build_vae(training).to(memory_format=torch.channels_last)
    kernels, vectors = ([p for p in module.parameters() if (p.ndim > 1) == many] for many in (True, False))
    # on this VAE, Muon needs a third of AdamW's steps
    groups = [{"params": kernels, "orthogonal": True, "factor": training.muon_rate / training.adam_rate}]
    optimizer = Muon([*groups, {"params": vectors}], training.adam_rate)
    schedule = LambdaLR(optimizer, lambda step: decay(step + 1, training.steps))
    errors: list[float] = []
    for step in range(1, training.steps + 1):
        module.train()
        x = augment_frames(frames[torch.randint(len(frames), (training.batch,), generator=generator)], generator)
        posterior = module.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        y = module.decode(posterior.mean + posterior.std * noise).sample
        pixel = F.l1_loss(y, x)
        loss = pixel + training.square_weight * F.mse_loss(y, x) + training.edge_weight * edge_error(y, x)
        loss = loss + training.kl_weight * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(float(pixel.detach()))
        if step % REPORT_EVERY == 0 or step == training.steps:
            yield step, module, sum(errors) / len(errors)
            errors.clear()


def decay(step: int, steps: int) -> float:
    """Return the learning rate's factor: linear warm-up over 100 steps, constant, linear to zero over the last 60 %."""
    return min(1.0, step / 100, (steps - step) / (0.6 * steps) + 0.01)


def augment_frames(frames: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Convert uint8 (B, H, W, 3) like `to_input`, and mirror frames at random."""
    x = to_input(frames)
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored, x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


def edge_error(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of the finite differences along both axes."""
    d = y - x
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


@torch.inference_mode()
def reconstruction_psnr(module: AutoencoderKL, frames: torch.Tensor) -> float:
    """Return the mean PSNR in dB of frames decoded from the posterior mean."""
    values = []
    for chunk in frames.split(64):
        x = to_input(chunk)
        y = module.decode(module.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(F.mse_loss(y, x, reduction="none").mean((1, 2, 3)) / 4))
    return float(torch.cat(values).mean())


@torch.inference_mode()
def latent_scaling(module: AutoencoderKL, frames: torch.Tensor) -> float:
    """Return 1 / standard deviation of posterior samples, which is how the SD VAE's 0.18215 was found."""
    generator = torch.Generator().manual_seed(0)
    latents = []
    for chunk in frames.split(64):
        posterior = module.encode(to_input(chunk)).latent_dist
        latents.append(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator))
    return float(1 / torch.cat(latents).std())
