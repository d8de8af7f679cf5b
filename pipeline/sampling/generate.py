"""IMAGE LATENT -> CLIP LATENT: how a trained model animates an image. Plain torch, one batch at a time.

    image -> VAE posterior mean -> prior -> SDE (bridge) or DDIM (diffusion) -> VAE decoder -> frames

The export decides how it is sampled (process, schedule, SAF, kind of prior); settings decide how finely.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..bridge import samplers
from ..bridge.bridge import Bridge
from ..bridge.leakage import analytic_init
from ..bridge.loss import Denoise
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
from .exports import Exports, check_encoders, check_sampler, load_networks


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
    bridge: Bridge
    alphas_cumprod: Tensor  # of diffusion, (1000,)
    how: SampleSettings
    decode_frames: int  # frames that the VAE decodes at once


class Generated(NamedTuple):
    """Scaled latents (B, F, C, h, w) float32 on the model's device."""

    clip: Tensor
    prior: Tensor


def load_for_sampling(
    exports: Exports, sample: SampleSettings, vae: VaeSettings, text: TextSettings, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load everything that `generate` needs; the text encoder only for a model that takes text.

    Raises UserError or WeightsMismatch.
    """
    vae_module = load_vae(vae.path, vae.dtype, device)
    check_encoders(exports, vae.path, vae_module.weights_hash, text)
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
        bridge=build_bridge(exports.bridge),
        alphas_cumprod=pretrained_schedule(exports.bridge),
        how=sample,
        decode_frames=vae.batch_frames,
    )


def encode_images(loaded: LoadedModel, images: np.ndarray) -> Tensor:
    """Encode images uint8 (B, H, W, 3) to scaled posterior means (B, C, h, w) float32."""
    mean, _ = loaded.vae.encode_clips(torch.from_numpy(images.copy())[:, None])
    return mean[:, 0] * loaded.vae.scaling_factor


def decode_latents(loaded: LoadedModel, latents: Tensor) -> Tensor:
    """Decode scaled latents (B, F, C, h, w) to uint8 (B, F, H, W, 3) on the CPU."""
    return loaded.vae.decode_clips(latents, loaded.decode_frames)


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    image_latent: Tensor,
    labels: list[str],
    keys: list[str],
    seed: int,
    captions: list[str] | None = None,
    strides: list[float] | None = None,
) -> Generated:
    """Generate clips for image_latent (B, C, h, w), with one class name ("" for none) and one key each.

    Captions and strides are for models that take them, and default to the class names and sample.stride. A clip depends
    on its own image, class and key and on `seed`; the rest of the batch changes rounding only.
    """
    how, table = loaded.how, loaded.alphas_cumprod
    check_sampler(loaded.exports, how)
    denoise, end_point = denoiser(loaded, image_latent, labels, captions, strides, how.guidance, how.image_guidance)
    noise = noise_of_keys(seed, keys, end_point.shape[1:], loaded.vae.device)
    if loaded.exports.bridge.process == "bridge":
        clean = samplers.bridge_clean(denoise, loaded.bridge, end_point)
        return Generated(sample_bridge(loaded, clean, end_point, noise), end_point)
    clean = samplers.diffusion_clean(denoise, table, loaded.bridge.target)
    first = max(round(how.start * len(table)), 1)
    indices = sampling_indices(min(how.steps, first), first, how.spacing)
    z = noise(0)
    if how.analytic_init is not None:  # a draw from the nearest marginal, in place of the noise itself
        moments, abar = load_moments(how.analytic_init, loaded.exports.config["latent_shape"]), float(table[first - 1])
        z = analytic_init(torch.from_numpy(moments.mean), moments.variance, abar**0.5, (1 - abar) ** 0.5, z)
    return Generated(samplers.ddim(clean, table, z, indices, noise, how.eta), end_point)


def denoiser(
    loaded: LoadedModel,
    image_latent: Tensor,
    labels: list[str],
    captions: list[str] | None,
    strides: list[float] | None,
    guidance: float,
    image_guidance: float | None,
) -> tuple[Denoise, Tensor]:
    """Return the guided network and the bridge's end point. Arguments as in `generate`.

    With `image_guidance`, image tokens are guided apart from text.
    """
    image_latent = image_latent.to(loaded.vae.device)
    neural, end_point = make_priors(loaded, image_latent, labels)
    stride = torch.tensor(strides or [float(loaded.how.stride)] * len(labels), device=loaded.vae.device)
    given: dict[str, Tensor | None] = {"image_latent": image_latent, "stride": stride, "prior": neural}
    without: dict[str, Tensor] = {}  # shown to the unguided half instead
    if loaded.text_encoder is not None:
        given["text"] = text = loaded.text_encoder.encode(captions or labels)
        without["text"] = loaded.text_encoder.encode([""]).expand_as(text)
    if loaded.image_encoder is not None:
        given["image_features"] = loaded.image_encoder(image_latent)
        hidden = torch.zeros(len(labels), dtype=torch.bool, device=loaded.vae.device)
        without["image_features"] = loaded.image_encoder(image_latent, hidden)
    y = class_indices(labels, loaded.exports.config["classes"]).to(loaded.vae.device)
    conditions = {name: given[name] for name in loaded.model.conditions}
    if image_guidance is None:
        return guided(loaded.model, y, loaded.model.null_class, guidance, without, **conditions), end_point
    both = {"y": y, **{name: value for name, value in conditions.items() if value is not None}}
    image, neither = {**both, "text": without["text"]}, {**both, **without}
    return guided_by_text_and_image(loaded.model, both, image, neither, guidance, image_guidance), end_point


def make_priors(loaded: LoadedModel, image_latent: Tensor, labels: list[str]) -> tuple[Tensor | None, Tensor]:
    """Return F_eta's output, if the model was trained with it, and the end point: that, or the image replicated."""
    neural = None
    if loaded.prior is not None:
        neural = loaded.prior(image_latent, class_indices(labels, loaded.prior_classes).to(loaded.vae.device))
        if loaded.exports.bridge.prior == "neural":
            return neural, neural
    return neural, replicate(image_latent, loaded.exports.latent_shape[0])


def sample_bridge(loaded: LoadedModel, clean: samplers.Clean, prior: Tensor, noise: samplers.Noise) -> Tensor:
    """Return z_0 (B, F, C, h, w) by the bridge sampler that the settings name."""
    how, table = loaded.how, loaded.bridge.table
    indices = sampling_indices(how.steps, len(table), how.spacing)
    match loaded.exports.sampler(how):
        case "dbim":
            return samplers.dbim(clean, table, prior, indices, noise, how.eta, how.order)
        case "stochastic_heun":
            return samplers.stochastic_heun(clean, table, prior, indices, noise)
        case "ode_first_order":
            return samplers.ode_first_order(clean, table, prior, indices)
        case "ode_second_order":
            return samplers.ode_second_order(clean, table, prior, indices)
    return samplers.sde_first_order(clean, table, prior, indices, noise)


def noise_of_keys(seed: int, keys: list[str], shape: tuple[int, ...], device: torch.device) -> samplers.Noise:
    """Make `noise(k)` for a sampler: call after call (B, *shape) on `device`, each row from its own generator.

    A row's generator is seeded by (seed, key) and runs on the CPU, so that neither batch nor machine matters.
    """
    digests = [hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest() for key in keys]
    generators = [torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1) for digest in digests]
    return lambda k: torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)
