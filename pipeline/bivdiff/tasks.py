"""Eq. 1: a clip's frames, each made by an image diffusion model of the task at hand, through diffusers' pipelines.

Frames are one batch, each with noise of its own, so nothing but the shared source ties one to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ..settings.bivdiff import BivdiffSettings
from .frames import Sources
from .items import BivdiffClip
from .prompt_to_prompt import EDITS, edit_frames

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# class of diffusers; what its argument for the ControlNet or T2I-Adapter is called
PIPELINES = {
    "controlnet": ("StableDiffusionControlNetPipeline", "controlnet"),
    "t2i_adapter": ("StableDiffusionAdapterPipeline", "adapter"),
    "instruct_pix2pix": ("StableDiffusionInstructPix2PixPipeline", None),
    "prompt_to_prompt": ("StableDiffusionPipeline", None),
    "inpainting": ("StableDiffusionInpaintPipeline", None),
    "outpainting": ("StableDiffusionInpaintPipeline", None),
}
Partner = Callable[[int, Any, Tensor, Tensor], Tensor]  # step, timestep, latents, prediction (N, C, h, w) -> prediction


class SharedScheduler(DDIMScheduler):
    """DDIM in which another model has a say in every prediction: what an image pipeline samples with.

    `partner` is asked for the last `shared` of a batch: Prompt-to-Prompt's sources, before them, go their own way.
    """

    partner: Partner | None = None
    shared = 0
    taken = 0  # steps

    def set_timesteps(self, *arguments: Any, **named: Any) -> None:
        super().set_timesteps(*arguments, **named)
        self.taken = 0

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **named: Any) -> Any:
        if self.partner is not None:
            own, both = model_output[: -self.shared], model_output[-self.shared :]
            joined = self.partner(self.taken, timestep, sample[-self.shared :], both)
            model_output = torch.cat([own, joined.to(model_output)])
        self.taken += 1
        return super().step(model_output, timestep, sample, *arguments, **named)


def make_frames(
    pipe: DiffusionPipeline,
    clip: BivdiffClip,
    sources: Sources,
    noise: Tensor,
    bivdiff: BivdiffSettings,
    partner: Partner | None = None,
) -> np.ndarray:
    """uint8 (F, H, W, 3) of a clip. `noise` (F, C, h, w): where sampling starts; for Prompt-to-Prompt the inverted source.

    Raises InputRejected for prompts that an edit cannot relate.
    """
    count = len(noise)
    # a latent is not clipped, whatever a folder's configuration leaves to the class's default
    pipe.scheduler = SharedScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.scheduler.partner, pipe.scheduler.shared = partner, count
    pipe.set_progress_bar_config(disable=True)
    common: dict[str, Any] = {"num_inference_steps": bivdiff.steps, "guidance_scale": bivdiff.guidance}
    noise = noise.to(pipe.device, pipe.unet.dtype)
    if bivdiff.task == "prompt_to_prompt":
        edit = EDITS[bivdiff.edit](pipe.tokenizer, clip["source_prompt"], clip["prompt"])
        prompts = clip["source_prompt"], clip["prompt"]
        negative = [clip["negative_prompt"]] * (2 * count)
        pixels = edit_frames(
            pipe, noise, *prompts, edit, bivdiff.cross_replace, bivdiff.self_replace, negative_prompt=negative, **common
        )
        return to_bytes(pixels.numpy())
    made = pipe(
        prompt=[clip["prompt"]] * count,
        negative_prompt=[clip["negative_prompt"]] * count,
        latents=noise,
        generator=torch.Generator().manual_seed(0),  # of a VAE's posterior; the noise is given
        output_type="np",
        **common,
        **arguments_of(sources, bivdiff),
    ).images
    frames = to_bytes(made)
    if sources.mask is not None and sources.video is not None:  # what is not to be made stays, without the VAE's losses
        frames = np.where(sources.mask[..., None] > 0, frames, sources.video)
    return frames


def arguments_of(sources: Sources, bivdiff: BivdiffSettings) -> dict[str, Any]:
    """What the pipeline of the task takes besides prompts and noise."""
    if bivdiff.task == "controlnet":
        assert sources.control is not None
        return {"image": to_pictures(sources.control), "controlnet_conditioning_scale": bivdiff.control_scale}
    if bivdiff.task == "t2i_adapter":
        assert sources.control is not None
        return {"image": to_pictures(sources.control), "adapter_conditioning_scale": bivdiff.control_scale}
    assert sources.video is not None
    if bivdiff.task == "instruct_pix2pix":
        return {"image": to_pictures(sources.video), "image_guidance_scale": bivdiff.image_guidance}
    assert sources.mask is not None
    height, width = sources.video.shape[1:3]
    masks = {"mask_image": to_pictures(sources.mask)}
    return {"image": to_pictures(sources.video), **masks, "height": height, "width": width}


def to_pictures(frames: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in frames]


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of pixels in 0..1."""
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
