"""diffusers' pipelines and this project's exports as `LatentDiffusion`; another video model is one more function here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..bridge.loss import Denoise
from ..bridge.schedule import sampling_indices
from ..bridge.targets import Target
from ..errors import UserError
from ..models.conditioning import guided
from ..models.vae import Vae
from ..sampling.generate import LoadedModel, conditions_of, denoiser, make_priors
from ..sampling.items import InputRejected, class_of
from .diffusion import Asked, LatentDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, TextToVideoSDPipeline

TARGETS: dict[str, Target] = {"epsilon": "noise", "v_prediction": "v", "sample": "z0"}


def image_diffusion(pipe: StableDiffusionPipeline, name: str) -> LatentDiffusion:
    """Stable Diffusion: every frame by itself."""

    def network(z: Tensor, t: Tensor, y: Tensor, text: Tensor) -> Tensor:
        frames = z.shape[1]
        each = pipe.unet(
            z.flatten(0, 1).to(pipe.unet.dtype), t.repeat_interleave(frames), text.repeat_interleave(frames, 0)
        ).sample
        return each.unflatten(0, z.shape[:2]).float()

    return of_pipeline(pipe, name, network)


def video_diffusion(pipe: TextToVideoSDPipeline, name: str) -> LatentDiffusion:
    """ZeroScope, ModelScope: diffusers' text-to-video, whose network has channels before frames."""

    def network(z: Tensor, t: Tensor, y: Tensor, text: Tensor) -> Tensor:
        return pipe.unet(z.transpose(1, 2).to(pipe.unet.dtype), t, text).sample.transpose(1, 2).float()

    return of_pipeline(pipe, name, network)


def of_pipeline(pipe: DiffusionPipeline, name: str, network: Any) -> LatentDiffusion:
    """What the two have in common: CLIP's text, the schedule of the folder, the VAE's factor."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def conditioned(asked: Asked, first: Tensor) -> Denoise:
        doubled = asked.guidance != 1.0
        with torch.no_grad():
            text, empty = pipe.encode_prompt(asked.prompt, pipe.device, 1, doubled, asked.negative)
        y = torch.zeros(len(text), dtype=torch.int64)  # a class, which the network does not know
        return guided(network, y, 0, asked.guidance, {"text": empty}, text=text)

    def indices(steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.cpu()

    kind = scheduler.config.prediction_type
    if kind not in TARGETS:
        raise UserError(f"{name}: its scheduler's prediction_type is {kind}; expected one of {', '.join(TARGETS)}")
    return LatentDiffusion(
        name=name,
        conditioned=conditioned,
        target=TARGETS[kind],
        alphas_cumprod=scheduler.alphas_cumprod.double().cpu(),
        indices=indices,
        scaling_factor=float(pipe.vae.config.scaling_factor),
        channels=int(pipe.unet.config.out_channels),
    )


def own_diffusion(sampler: LoadedModel) -> LatentDiffusion:
    """A diffusion model of this project. The prompt is its class's name, or a caption if it takes text.

    An image-to-video model is shown the clip's first frame. Raises UserError for a bridge.
    """
    exports = sampler.exports
    if exports.bridge.process != "diffusion":
        raise UserError(
            f"bivdiff.video_model = {exports.model_path}: a {exports.bridge.process} model, which starts from no noise; give "
            "a diffusion model (bridge.process diffusion)"
        )
    alphas_cumprod = sampler.alphas_cumprod

    def conditioned(asked: Asked, first: Tensor) -> Denoise:
        label = class_of(asked.prompt, exports.config["classes"])
        if asked.prompt and not label and sampler.text_encoder is None:
            known = ", ".join(exports.config["classes"])
            raise InputRejected(f"video_prompt {asked.prompt}: {exports.model_path} knows the classes {known}")
        labels, captions = [label] * len(first), [asked.prompt] * len(first)
        neural, _ = make_priors(sampler, first, labels)
        given, without = conditions_of(sampler, first, captions, None)
        given["prior"] = neural
        return denoiser(sampler, labels, given, without, asked.guidance, None)

    return LatentDiffusion(
        name=exports.model_path,
        conditioned=conditioned,
        target=exports.bridge.target,
        alphas_cumprod=alphas_cumprod,
        indices=lambda steps: sampling_indices(steps, len(alphas_cumprod)),
        scaling_factor=sampler.vae.scaling_factor,
        channels=exports.latent_shape[1],
        shown_image="image_latent" in sampler.model.conditions,
    )


def vae_of(pipe: DiffusionPipeline) -> Vae:
    """The VAE of a pipeline."""
    return Vae(pipe.vae, float(pipe.vae.config.scaling_factor), "")
