"""IMAGE LATENT -> CLIP LATENT: what a trained model makes of an image. Plain torch, one batch at a time.

    image -> VAE posterior mean -> prior -> SDE (bridge) or DDIM (diffusion) -> VAE decoder -> frames

The export decides how it is sampled (process, schedule, SAF, kind of prior); settings decide how finely.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.bridge.leakage import analytic_init
from pipeline.bridge.loss import Denoise
from pipeline.bridge.process import Process, process_of
from pipeline.bridge.samplers import (
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
from pipeline.bridge.schedule import sampling_indices
from pipeline.data.moments import Moments, load_moments
from pipeline.models.build import class_indices, load_model, load_prior, video_model
from pipeline.models.conditioning import guided, guided_by_text_and_image
from pipeline.models.image_encoder import ImageEncoder, load_image_encoder
from pipeline.models.image_to_video import VideoNetwork
from pipeline.models.paths import shipped_path
from pipeline.models.prior import NeuralPrior, replicate
from pipeline.models.text import TextEncoder, load_text_encoder
from pipeline.models.text_files import find_text_encoder, text_identity
from pipeline.models.vae import Vae, load_vae
from pipeline.models.weights import CONFIG_FILE, WEIGHTS_FILE
from pipeline.settings import BridgeSettings, SampleSettings, Settings, UserError
from pipeline.storage import read_json, resolve
from pipeline.train.initial import local_copy


class Exports(NamedTuple):
    """What is sampled with, known from the exports' config.json alone."""

    model_path: str
    config: dict[str, Any]
    bridge: BridgeSettings  # as trained
    prior_path: str | None  # None: replicated image

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """F, C, h, w"""
        frames, channels, height, width = self.config["latent_shape"]
        return frames, channels, height, width


@dataclass(frozen=True)
class Sampler:
    """The modules, on one device in eval mode, and the numbers of the process."""

    exports: Exports
    model: VideoNetwork
    prior: NeuralPrior | None
    prior_classes: list[str]
    vae: Vae
    text_encoder: TextEncoder | None
    image_encoder: ImageEncoder | None
    device: torch.device
    process: Process
    how: SampleSettings
    moments: Moments | None  # of the training clips, for Analytic-Init
    decode_frames: int  # frames that the VAE decodes at once


class Generated(NamedTuple):
    """Scaled latents (B, F, C, h, w) float32 on the sampler's device."""

    clip: Tensor
    prior: Tensor


def find_exports(settings: Settings) -> Exports:
    """The model and the neural prior that it was trained with. Raises UserError.

    bridge.prior_path wins over the place that the model's config.json names, and that over the run's own prior.
    """
    path = settings.model_export
    config = _config(path, "sample.model_path", "train one with jobs/finetune.py")
    bridge = settings.bridge.model_copy(update=config["bridge"])
    prior_path = None
    if (bridge.process == "bridge" and bridge.prior == "neural") or config["model"]["prior_condition"]:
        recorded = config.get("prior_export")
        if settings.bridge.prior_path:
            prior_path = settings.bridge.prior_path
        elif recorded and _has_config(recorded):
            prior_path = recorded
        else:
            prior_path = settings.prior_export
        prior = _config(prior_path, "bridge.prior_path", "train one with jobs/train_prior.py")
        _check_alike(prior_path, prior, path, config)
    return Exports(path, config, bridge, prior_path)


def _config(path: str, key: str, remedy: str) -> dict[str, Any]:
    address = f"{shipped_path(path)}/{CONFIG_FILE}"
    try:
        config = read_json(address)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: no export there ({CONFIG_FILE} is missing); {remedy}, or set {key}") from error
    except ValueError as error:
        raise UserError(f"{address}: not valid JSON ({error}); export again, or set {key}") from error
    missing = {"kind", "model", "bridge", "latent_shape", "classes", "vae"} - set(config)
    if missing:
        raise UserError(f"{address}: is no export of this project (without {', '.join(sorted(missing))}); set {key}")
    return config


def _has_config(path: str) -> bool:
    try:
        return bool(read_json(f"{shipped_path(path)}/{CONFIG_FILE}"))
    except (OSError, ValueError):
        return False


def _check_alike(prior_path: str, prior: dict[str, Any], model_path: str, model: dict[str, Any]) -> None:
    for what, ours, theirs in (
        ("latents of", prior["latent_shape"], model["latent_shape"]),
        ("a VAE with hash", prior["vae"]["weights_hash"], model["vae"]["weights_hash"]),
    ):
        if ours != theirs:
            raise UserError(
                f"{prior_path}: the prior was trained on {what} {ours}, the model {model_path} on {theirs}; "
                "set bridge.prior_path to the prior of that model"
            )


def check_vae(exports: Exports, vae_path: str, weights_hash: str) -> None:
    """Raise UserError if the VAE at hand is not the one that the model's latents come from."""
    trained = exports.config["vae"]
    if trained["weights_hash"] != weights_hash:
        raise UserError(
            f"vae.path = {vae_path}: weights {weights_hash[:12]}..., but {exports.model_path} was trained on latents of "
            f"{trained['path']} ({trained['weights_hash'][:12]}...); set vae.path to that VAE"
        )


def weights_sha256(export: str) -> str:
    """SHA-256 of an export's weights. Raises UserError if there are none."""
    filesystem, inner = resolve(f"{shipped_path(export)}/{WEIGHTS_FILE}")
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(inner) as stream:
            while chunk := stream.read(8 << 20):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise UserError(f"{export}: {WEIGHTS_FILE} is missing; export again, or set sample.model_path") from error
    return digest.hexdigest()


def load_networks(exports: Exports) -> tuple[VideoNetwork, NeuralPrior | None, list[str]]:
    """Model, prior and the prior's classes, on the CPU. Raises UserError or WeightsMismatch."""
    with ExitStack() as stack:
        model, _ = load_model(stack.enter_context(local_copy(exports.model_path)))
        if exports.prior_path is None:
            return model, None, []
        prior, config = load_prior(stack.enter_context(local_copy(exports.prior_path)))
        return model, prior, config["classes"]


def sampler_name(exports: Exports, how: SampleSettings) -> str:
    """sample.sampler, what auto stands for being said."""
    if how.sampler != "auto":
        return how.sampler
    return "sde_first_order" if exports.bridge.process == "bridge" else "ddim"


def check_sampler(exports: Exports, how: SampleSettings) -> None:
    """Raise UserError if the sampler is not for the process that the model was trained for."""
    name, process = sampler_name(exports, how), exports.bridge.process
    if (name == "ddim") != (process == "diffusion"):
        other = "ddim or auto" if process == "diffusion" else "auto, or any but ddim"
        raise UserError(f"sample.sampler = {name}: {exports.model_path} is a {process} model; set {other}")
    if process == "bridge" and (how.start < 1 or how.analytic_init is not None):
        raise UserError(
            f"sample.start = {how.start}, sample.analytic_init = {how.analytic_init}: they choose the noise that diffusion "
            f"starts from, but {exports.model_path} is a bridge, which starts at its prior; set start 1 and analytic_init null"
        )
    model = exports.config["model"]
    tokens = model.get("backbone") == "unet3d" and model["unet3d"]["image_encoder"] is not None
    if how.image_guidance is not None and not tokens:
        raise UserError(
            f"sample.image_guidance = {how.image_guidance}: guides image tokens, which {exports.model_path} does not take; "
            "set null"
        )
    if name == "sde_first_order" and how.eta > 0:
        raise UserError(f"sample.eta = {how.eta} is of dbim and ddim; set sample.eta 0 or sample.sampler dbim")


def load_sampler(settings: Settings, device: str | torch.device = "cpu") -> Sampler:
    """Everything that `generate` needs. Raises UserError or WeightsMismatch."""
    exports = find_exports(settings)
    vae = load_vae(settings.vae.path, settings.vae.dtype, device)
    check_vae(exports, settings.vae.path, vae.weights_hash)
    model, prior, prior_classes = load_networks(exports)
    how = settings.sample
    check_sampler(exports, how)
    check_text(settings, exports)
    image_encoder = None
    if "image_features" in model.conditions:
        image_encoder = load_image_encoder(video_model(exports.config), vae, vae.module.dtype, device)
    return Sampler(
        exports=exports,
        model=model.to(device),
        prior=None if prior is None else prior.to(device),
        prior_classes=prior_classes,
        vae=vae,
        text_encoder=load_text_encoder(settings.text, device) if "text" in model.conditions else None,
        image_encoder=image_encoder,
        device=torch.device(device),
        process=process_of(exports.bridge),
        how=how,
        moments=None if how.analytic_init is None else load_moments(how.analytic_init, exports.config["latent_shape"]),
        decode_frames=settings.vae.batch_frames,
    )


def check_text(settings: Settings, exports: Exports) -> None:
    """Raise UserError if the model takes text and the encoder at hand is not the one that it was trained with."""
    trained = exports.config.get("text")
    if exports.config["model"].get("backbone", "latte") == "latte" or trained is None:
        return
    if settings.text.path is None:
        raise UserError(f"{exports.model_path}: was trained with text; set text.path to its encoder")
    same: dict[str, Any] = {"text.layer": settings.text.layer, "text.max_length": settings.text.max_length}
    same["text.path (hash of its files)"] = text_identity(
        find_text_encoder(settings.text.path, settings.text.tokenizer)
    )
    for key, value in same.items():
        if trained[key] != value:
            raise UserError(f"{exports.model_path}: was trained with {key} = {trained[key]}, not {value}; set it alike")


def encode_images(sampler: Sampler, images: Tensor) -> Tensor:
    """Scaled posterior means (B, C, h, w) float32 of uint8 (B, H, W, 3)."""
    mean, _ = sampler.vae.encode_clips(images[:, None])
    return mean[:, 0] * sampler.vae.scaling_factor


def decode_clips(sampler: Sampler, latents: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) on the CPU of scaled latents (B, F, C, h, w)."""
    return sampler.vae.decode_clips(latents, sampler.decode_frames)


@torch.inference_mode()
def generate(
    sampler: Sampler,
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
    image_latent = image_latent.to(sampler.device)
    neural, end_point = make_priors(sampler, image_latent, labels)
    how = sampler.how
    denoise = denoiser(
        sampler, image_latent, labels, captions or labels, strides, neural, how.guidance, how.image_guidance
    )
    noise = noise_of_keys(seed, keys, end_point.shape[1:], sampler.device)
    bridge, (table, alphas_cumprod, aligned_t) = sampler.exports.bridge, sampler.process
    if bridge.process == "bridge":
        clean = bridge_clean(denoise, table, end_point, aligned_t, bridge.target)
        return Generated(sample_bridge(sampler, clean, end_point, noise), end_point)
    clean = diffusion_clean(denoise, alphas_cumprod, bridge.target)
    first = max(round(sampler.how.start * len(alphas_cumprod)), 1)
    indices = sampling_indices(min(sampler.how.steps, first), first, sampler.how.spacing)
    z = start_noise(sampler, noise(0), float(alphas_cumprod[first - 1]))
    return Generated(ddim(clean, alphas_cumprod, z, indices, noise, sampler.how.eta), end_point)


def denoiser(
    sampler: Sampler,
    image_latent: Tensor,
    labels: list[str],
    captions: list[str],
    strides: list[float] | None,
    neural: Tensor | None,
    guidance: float,
    image_guidance: float | None,
) -> Denoise:
    """The network with everything that it is shown, guided; by image tokens apart from text if image_guidance says how."""
    y = class_indices(labels, sampler.exports.config["classes"]).to(sampler.device)
    given, without = conditions_of(sampler, image_latent, captions, strides)
    given["prior"] = neural
    conditions = {name: given[name] for name in sampler.model.conditions}
    if image_guidance is None:
        return guided(sampler.model, y, sampler.model.null_class, guidance, without, **conditions)
    both = {"y": y, **{name: value for name, value in conditions.items() if value is not None}}
    image, neither = {**both, "text": without["text"]}, {**both, **without}
    return guided_by_text_and_image(sampler.model, both, image, neither, guidance, image_guidance)


def conditions_of(
    sampler: Sampler, image_latent: Tensor, captions: list[str], strides: list[float] | None
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


def sample_bridge(sampler: Sampler, clean: Clean, prior: Tensor, noise: Noise) -> Tensor:
    """z_0 (B, F, C, h, w) by the bridge sampler that the settings name."""
    how, table = sampler.how, sampler.process.table
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


def start_noise(sampler: Sampler, noise: Tensor, abar: float) -> Tensor:
    """What diffusion starts from: the noise itself, or with Analytic-Init a draw from the nearest marginal."""
    if sampler.moments is None:
        return noise
    mean, variance = sampler.moments.mean, sampler.moments.variance
    return analytic_init(torch.from_numpy(mean), variance, abar**0.5, (1 - abar) ** 0.5, noise)


def make_priors(sampler: Sampler, image_latent: Tensor, labels: list[str]) -> tuple[Tensor | None, Tensor]:
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
