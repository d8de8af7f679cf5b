"""IMAGE LATENT -> CLIP LATENT: what a trained model makes of an image. Plain torch, one batch at a time.

    image -> VAE posterior mean -> prior -> SDE (bridge) or DDIM (diffusion) -> VAE decoder -> frames

The export decides how it is sampled (process, schedule, SAF, kind of prior); settings decide how finely.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..bridge.bridge import Bridge
from ..bridge.leakage import analytic_init
from ..bridge.loss import Denoise
from ..bridge.samplers import (
    Clean,
    Noise,
    bridge_clean,
    dbim,
    ddim,
    diffusion_clean,
    ode_first_order,
    ode_second_order,
    sde_first_order,
    stochastic_heun,
)
from ..bridge.schedule import sampling_indices
from ..data.cache.moments import load_moments
from ..models.build import build_bridge, class_indices, pretrained_schedule, video_model
from ..models.conditioning import guided, guided_by_text_and_image
from ..models.image_encoder import ImageEncoder, load_image_encoder
from ..models.image_to_video import VideoNetwork
from ..models.prior import NeuralPrior, replicate
from ..models.text import TextEncoder, load_text_encoder
from ..models.vae import Vae, load_vae
from ..settings import SampleSettings, TextSettings, VaeSettings
from .exports import Exports, check_sampler, check_text, check_vae, load_networks, sampler_name


@dataclass(frozen=True)
class LoadedModel:
    """The modules, on one device in eval mode, and the numbers of the process."""

    exports: Exports
    model: VideoNetwork
    prior: NeuralPrior | None
    prior_classes: list[str]
    vae: Vae
    text_encoder: TextEncoder | None
    image_encoder: ImageEncoder | None
    device: torch.device
    bridge: Bridge
    alphas_cumprod: Tensor  # of diffusion, (1000,)
    how: SampleSettings
    decode_frames: int  # frames that the VAE decodes at once


class Generated(NamedTuple):
    """Scaled latents (B, F, C, h, w) float32 on the sampler's device."""

    clip: Tensor
    prior: Tensor


def load_for_sampling(
    exports: Exports, sample: SampleSettings, vae: VaeSettings, text: TextSettings, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load everything that `generate` needs. Raises UserError or WeightsMismatch.

    The text encoder is looked for only where the model takes text.
    """
    vae_module = load_vae(vae.path, vae.dtype, device)
    check_vae(exports, vae.path, vae_module.weights_hash)
    check_text(exports, text)
    model, prior, prior_classes = load_networks(exports)
    image_encoder = None
    if "image_features" in model.conditions:
        image_encoder = load_image_encoder(video_model(exports.config), vae_module, vae_module.module.dtype, device)
    return LoadedModel(
        exports=exports,
        model=model.to(device),
        prior=None if prior is None else prior.to(device),
        prior_classes=prior_classes,
        vae=vae_module,
        text_encoder=load_text_encoder(text, device) if "text" in model.conditions else None,
        image_encoder=image_encoder,
        device=torch.device(device),
        bridge=build_bridge(exports.bridge),
        alphas_cumprod=pretrained_schedule(exports.bridge),
        how=sample,
        decode_frames=vae.batch_frames,
    )


def encode_images(sampler: LoadedModel, images: Tensor) -> Tensor:
    """Scaled posterior means (B, C, h, w) float32 of uint8 (B, H, W, 3)."""
    mean, _ = sampler.vae.encode_clips(images[:, None])
    return mean[:, 0] * sampler.vae.scaling_factor


def decode_clips(sampler: LoadedModel, latents: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) on the CPU of scaled latents (B, F, C, h, w)."""
    return sampler.vae.decode_clips(latents, sampler.decode_frames)


@torch.inference_mode()
def generate(
    sampler: LoadedModel,
    image_latent: Tensor,
    labels: list[str],
    keys: list[str],
    seed: int,
    captions: list[str] | None = None,
    strides: list[float] | None = None,
) -> Generated:
    """Clips for image_latent (B, C, h, w), with one class name ("": none) and one key each.

    captions and strides are for models that take them; without, they are the class names and sample.stride. An item's clip depends on its own image, class and key and on `seed`; the rest of the batch changes rounding only.
    """
    how = sampler.how
    check_sampler(sampler.exports, how)
    image_latent = image_latent.to(sampler.device)
    neural, end_point = make_priors(sampler, image_latent, labels)
    given, without = conditions_of(sampler, image_latent, captions or labels, strides)
    given["prior"] = neural
    denoise = denoiser(sampler, labels, given, without, how.guidance, how.image_guidance)
    noise = noise_of_keys(seed, keys, end_point.shape[1:], sampler.device)
    if sampler.exports.bridge.process == "bridge":
        clean = bridge_clean(denoise, sampler.bridge, end_point)
        return Generated(sample_bridge(sampler, clean, end_point, noise), end_point)
    alphas_cumprod = sampler.alphas_cumprod
    clean = diffusion_clean(denoise, alphas_cumprod, sampler.bridge.target)
    first = max(round(sampler.how.start * len(alphas_cumprod)), 1)
    indices = sampling_indices(min(sampler.how.steps, first), first, sampler.how.spacing)
    z = start_noise(sampler, noise(0), float(alphas_cumprod[first - 1]))
    return Generated(ddim(clean, alphas_cumprod, z, indices, noise, sampler.how.eta), end_point)


def denoiser(
    sampler: LoadedModel,
    labels: list[str],
    given: Mapping[str, Tensor | None],
    without: Mapping[str, Tensor],
    guidance: float,
    image_guidance: float | None,
) -> Denoise:
    """The guided network. `given`: all that it may be shown; `without`: what the unguided half is shown instead.

    With `image_guidance`, image tokens are guided apart from text.
    """
    y = class_indices(labels, sampler.exports.config["classes"]).to(sampler.device)
    conditions = {name: given[name] for name in sampler.model.conditions}
    if image_guidance is None:
        return guided(sampler.model, y, sampler.model.null_class, guidance, without, **conditions)
    both = {"y": y, **{name: value for name, value in conditions.items() if value is not None}}
    image, neither = {**both, "text": without["text"]}, {**both, **without}
    return guided_by_text_and_image(sampler.model, both, image, neither, guidance, image_guidance)


def conditions_of(
    sampler: LoadedModel, image_latent: Tensor, captions: list[str], strides: list[float] | None
) -> tuple[dict[str, Tensor | None], dict[str, Tensor]]:
    """What the network may be shown, and what it is shown in place of that in the unguided half."""
    stride = torch.tensor(strides or [float(sampler.how.stride)] * len(captions), device=sampler.device)
    given: dict[str, Tensor | None] = {"image_latent": image_latent, "stride": stride}
    without: dict[str, Tensor] = {}
    if sampler.text_encoder is not None:
        given["text"] = text = sampler.text_encoder.encode(captions)
        without["text"] = sampler.text_encoder.encode([""]).expand_as(text)
    if sampler.image_encoder is not None:
        given["image_features"] = sampler.image_encoder(image_latent)
        none = torch.zeros(len(captions), dtype=torch.bool, device=sampler.device)
        without["image_features"] = sampler.image_encoder(image_latent, none)
    return given, without


def sample_bridge(sampler: LoadedModel, clean: Clean, prior: Tensor, noise: Noise) -> Tensor:
    """z_0 (B, F, C, h, w) by the bridge sampler that the settings name."""
    how, table = sampler.how, sampler.bridge.table
    indices = sampling_indices(how.steps, len(table), how.spacing)
    name = sampler_name(sampler.exports, how)
    if name == "dbim":
        return dbim(clean, table, prior, indices, noise, how.eta, how.order)
    if name == "stochastic_heun":
        return stochastic_heun(clean, table, prior, indices, noise)
    if name == "ode_first_order":
        return ode_first_order(clean, table, prior, indices)
    if name == "ode_second_order":
        return ode_second_order(clean, table, prior, indices)
    return sde_first_order(clean, table, prior, indices, noise)


def start_noise(sampler: LoadedModel, noise: Tensor, abar: float) -> Tensor:
    """What diffusion starts from: the noise itself, or with Analytic-Init a draw from the nearest marginal."""
    if sampler.how.analytic_init is None:
        return noise
    moments = load_moments(sampler.how.analytic_init, sampler.exports.config["latent_shape"])
    return analytic_init(torch.from_numpy(moments.mean), moments.variance, abar**0.5, (1 - abar) ** 0.5, noise)


def make_priors(sampler: LoadedModel, image_latent: Tensor, labels: list[str]) -> tuple[Tensor | None, Tensor]:
    """F_eta's output, if the model was trained with one, and the bridge's end point: that or the image replicated."""
    neural = None
    if sampler.prior is not None:
        neural = sampler.prior(image_latent, class_indices(labels, sampler.prior_classes).to(sampler.device))
    if neural is not None and sampler.exports.bridge.prior == "neural":
        return neural, neural
    return neural, replicate(image_latent, sampler.exports.latent_shape[0])


def noise_of_keys(seed: int, keys: list[str], shape: torch.Size, device: torch.device) -> Callable[[int], Tensor]:
    """`noise(k)` for a sampler: call after call (B, *shape) on `device`, each row from its own generator.

    A row's generator is seeded by (seed, key) and runs on the CPU, so that neither batch nor machine matters.
    """
    generators = [
        torch.Generator().manual_seed(
            int.from_bytes(hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest(), "big") >> 1
        )
        for key in keys
    ]
    return lambda k: torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)
