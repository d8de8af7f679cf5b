"""Pre-trained diffusion models as BIVDiff needs them: DDIM in both directions, for networks that predict eps, v or z0.

Latents are (B, F, C, h, w) throughout; an image model sees the F frames of a clip as F images. Each kind of model
becomes a `LatentDiffusion` by one function: diffusers' image and video pipelines, and this project's exports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from torch import Tensor

from ..bridge.loss import Denoise
from ..bridge.samplers import Clean, check_descending, ddim, diffusion_clean
from ..bridge.schedule import sampling_indices
from ..bridge.targets import Target
from ..errors import UserError
from ..models.conditioning import guided
from ..models.vae import Vae
from ..sampling.generate import LoadedModel, denoiser
from ..sampling.items import InputRejected, class_of

TARGETS: dict[str, Target] = {"epsilon": "noise", "v_prediction": "v", "sample": "z0"}


class Prompt(NamedTuple):
    """A prompt for a model, and its guidance; by default the empty prompt without guidance."""

    text: str = ""
    negative: str = ""
    guidance: float = 1.0


@dataclass(frozen=True)
class LatentDiffusion:
    """A model of images or of clips, and the schedule that it was trained on."""

    name: str  # where it comes from, for messages
    conditioned: Callable[[Prompt, Tensor], Denoise]  # by a prompt, and a first frame (B, C, h, w)
    target: Target
    alphas_cumprod: Tensor  # (N,) float64, on the CPU
    indices: Callable[[int], Tensor]  # of a number of steps, descending
    vae: Vae
    channels: int  # of a latent
    shown_image: bool = False  # whether it is an image-to-video model

    def encode(self, frames: np.ndarray | None) -> Tensor:
        """Encode frames uint8 (F, H, W, 3) to scaled posterior means (1, F, C, h, w) float32.

        Raises InputRejected without frames.
        """
        if frames is None:
            raise InputRejected("names no video, whose first frame bivdiff.video_model is to be shown")
        mean, _ = self.vae.encode_clips(torch.from_numpy(frames.copy())[None])
        return mean * self.vae.scaling_factor

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode scaled latents (1, F, C, h, w) to uint8 (F, H, W, 3), frame by frame."""
        return self.vae.decode_clips(latents, 1)[0].numpy()

    def invert(self, z0: Tensor, steps: int) -> Tensor:
        """Return z_T of a clip, by the empty prompt and without guidance."""
        return ddim_invert(self._clean(Prompt(), z0), self.alphas_cumprod, z0, self.indices(steps))

    def sample(self, z_T: Tensor, prompt: Prompt, steps: int, like: Tensor) -> Tensor:
        """Return the clip that DDIM makes of z_T; an image-to-video model is shown the first frame of `like`."""
        return ddim(self._clean(prompt, like), self.alphas_cumprod, z_T, self.indices(steps))

    def last(self, steps: int) -> Tensor:
        """Return alphas_cumprod at z_T, 0-d."""
        return self.alphas_cumprod[self.indices(steps)[0]]

    def _clean(self, prompt: Prompt, like: Tensor) -> Clean:
        return diffusion_clean(self.conditioned(prompt, like[:, 0]), self.alphas_cumprod, self.target)


@torch.no_grad()
def ddim_invert(clean: Clean, alphas_cumprod: Tensor, z_0: Tensor, indices: Tensor) -> Tensor:
    """Return the noise z_T from which `samplers.ddim` returns to z_0 (B, F, C, h, w) along the same `indices`.

    Undoes every step of DDIM from s to t in turn: z_s = alpha_s (z_t - sigma_t eps)/alpha_t + sigma_s eps. With
    eps(z_s, s) that would be exact; with eps(z_t, s), which is known, a round trip errs to the first order of a step.
    """
    check_descending(indices, len(alphas_cumprod))
    z = z_0.to(torch.promote_types(z_0.dtype, torch.float32))
    abar_t = torch.ones((), dtype=alphas_cumprod.dtype)
    for s in indices.flip(0):
        abar_s = alphas_cumprod[s]
        eps = (z - abar_s.sqrt() * clean(z, s)) / (1 - abar_s).sqrt()
        z = (abar_s / abar_t).sqrt() * (z - (1 - abar_t).sqrt() * eps) + (1 - abar_s).sqrt() * eps
        abar_t = abar_s
    return z


def image_diffusion(pipe: diffusers.StableDiffusionPipeline, name: str) -> LatentDiffusion:
    """Stable Diffusion, which sees every frame by itself."""

    def network(z: Tensor, t: Tensor, y: Tensor, text: Tensor) -> Tensor:
        """Predict for every frame of z (B, F, C, h, w) by itself."""
        t, text = (values.repeat_interleave(z.shape[1], 0) for values in (t, text))
        return pipe.unet(z.flatten(0, 1).to(pipe.unet.dtype), t, text).sample.unflatten(0, z.shape[:2]).float()

    return of_pipeline(pipe, name, network)


def video_diffusion(pipe: diffusers.TextToVideoSDPipeline, name: str) -> LatentDiffusion:
    """ZeroScope, ModelScope: diffusers' text-to-video, whose network has channels before frames."""

    def network(z: Tensor, t: Tensor, y: Tensor, text: Tensor) -> Tensor:
        """Predict for z (B, F, C, h, w)."""
        return pipe.unet(z.transpose(1, 2).to(pipe.unet.dtype), t, text).sample.transpose(1, 2).float()

    return of_pipeline(pipe, name, network)


def of_pipeline(pipe: diffusers.DiffusionPipeline, name: str, network: Callable[..., Tensor]) -> LatentDiffusion:
    """A pipeline's text encoder, schedule and VAE around `network`. Raises UserError."""
    scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    kind = scheduler.config.prediction_type
    if kind not in TARGETS:
        raise UserError(f"{name}: its scheduler's prediction_type is {kind}; expected one of {', '.join(TARGETS)}")

    def conditioned(prompt: Prompt, first: Tensor) -> Denoise:
        """Encode the prompt; the network sees no first frame."""
        with torch.no_grad():
            text, empty = pipe.encode_prompt(prompt.text, pipe.device, 1, prompt.guidance != 1.0, prompt.negative)
        y = torch.zeros(len(text), dtype=torch.int64)  # a class, which the network does not know
        return guided(network, y, 0, prompt.guidance, {"text": empty}, text=text)

    def indices(steps: int) -> Tensor:
        """Return the scheduler's own timesteps."""
        scheduler.set_timesteps(steps)
        return scheduler.timesteps.cpu()

    return LatentDiffusion(
        name=name,
        conditioned=conditioned,
        target=TARGETS[kind],
        alphas_cumprod=scheduler.alphas_cumprod.double().cpu(),
        indices=indices,
        vae=Vae(pipe.vae, float(pipe.vae.config.scaling_factor), ""),
        channels=int(pipe.unet.config.out_channels),
    )


def own_diffusion(loaded: LoadedModel) -> LatentDiffusion:
    """A diffusion model of this project. The prompt is its class's name, or a caption if it takes text.

    An image-to-video model is shown the clip's first frame. Raises UserError for a bridge.
    """
    exports, classes = loaded.exports, loaded.exports.config["classes"]
    if exports.bridge.process != "diffusion":
        raise UserError(
            f"bivdiff.video_model = {exports.model_path}: a {exports.bridge.process} model, which starts from no "
            "noise; give a diffusion model (bridge.process diffusion)"
        )

    def conditioned(prompt: Prompt, first: Tensor) -> Denoise:
        """Take the prompt as a class or a caption. Raises InputRejected."""
        label = class_of(prompt.text, classes)
        if prompt.text and not label and loaded.text_encoder is None:
            raise InputRejected(f"video_prompt {prompt.text}: {exports.model_path} knows {', '.join(classes)}")
        count = len(first)
        return denoiser(loaded, first, [label] * count, [prompt.text] * count, None, prompt.guidance, None)[0]

    return LatentDiffusion(
        name=exports.model_path,
        conditioned=conditioned,
        target=exports.bridge.target,
        alphas_cumprod=loaded.alphas_cumprod,
        indices=lambda steps: sampling_indices(steps, len(loaded.alphas_cumprod)),
        vae=loaded.vae,
        channels=exports.latent_shape[1],
        shown_image="image_latent" in loaded.model.conditions,
    )
