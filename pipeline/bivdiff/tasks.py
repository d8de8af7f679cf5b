"""Eq. 1: a clip's frames, each made by the image diffusion model of the task, through diffusers' pipelines.

Frames are one batch, each with noise of its own, so only the shared source ties one to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..settings.bivdiff import BivdiffSettings
from .frames import Sources
from .items import BivdiffClip
from .prompt_to_prompt import EDITS, EditedAttention, edit_frames

# classes of diffusers
PIPELINES = {
    "controlnet": "StableDiffusionControlNetPipeline",
    "t2i_adapter": "StableDiffusionAdapterPipeline",
    "instruct_pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "prompt_to_prompt": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "outpainting": "StableDiffusionInpaintPipeline",
}
# task -> the pipeline's argument for the adapter, and the adapter's class
ADAPTERS = {"controlnet": ("controlnet", "ControlNetModel"), "t2i_adapter": ("adapter", "T2IAdapter")}
# (step, timestep, latents (N, C, h, w), prediction) -> prediction
Partner = Callable[[int, Any, Tensor, Tensor], Tensor]


class SharedScheduler(diffusers.DDIMScheduler):
    """DDIM for an image pipeline whose predictions another model shares.

    `partner` changes the last `shared` predictions of a batch, not those of Prompt-to-Prompt's sources before them.
    """

    partner: Partner | None = None
    shared = 0
    taken = 0  # steps

    def set_timesteps(self, *arguments: Any, **named: Any) -> None:
        """Start anew, as DDIMScheduler does."""
        super().set_timesteps(*arguments, **named)
        self.taken = 0

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *arguments: Any, **named: Any) -> Any:
        """Take one step of DDIM, from the shared prediction."""
        if self.partner is not None:
            own, both = model_output[: -self.shared], model_output[-self.shared :]
            joined = self.partner(self.taken, timestep, sample[-self.shared :], both)
            model_output = torch.cat([own, joined.to(model_output)])
        self.taken += 1
        return super().step(model_output, timestep, sample, *arguments, **named)


def make_frames(
    pipe: diffusers.DiffusionPipeline,
    clip: BivdiffClip,
    sources: Sources,
    noise: Tensor,
    bivdiff: BivdiffSettings,
    partner: Partner | None = None,
) -> np.ndarray:
    """Make the frames of a clip, uint8 (F, H, W, 3).

    Sampling starts at `noise` (F, C, h, w), for Prompt-to-Prompt the inverted source. Raises InputRejected for prompts
    that an edit cannot relate.
    """
    count = len(noise)
    # a folder's configuration may leave the clipping of latents to the class's default, which clips
    pipe.scheduler = SharedScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.scheduler.partner, pipe.scheduler.shared = partner, count
    pipe.set_progress_bar_config(disable=True)
    common: dict[str, Any] = {"num_inference_steps": bivdiff.steps, "guidance_scale": bivdiff.guidance}
    noise = noise.to(pipe.device, pipe.unet.dtype)
    if bivdiff.task == "prompt_to_prompt":
        prompts = clip["source_prompt"], clip["prompt"]
        edit = EDITS[bivdiff.edit](pipe.tokenizer, *prompts)
        attention = EditedAttention(edit, bivdiff.cross_replace, bivdiff.self_replace, bivdiff.steps)
        common["negative_prompt"] = [clip["negative_prompt"]] * (2 * count)
        return to_bytes(edit_frames(pipe, noise, *prompts, attention, **common).numpy())
    made = pipe(
        prompt=[clip["prompt"]] * count,
        negative_prompt=[clip["negative_prompt"]] * count,
        latents=noise,
        generator=torch.Generator().manual_seed(0),  # for a VAE's posterior; the noise is given
        output_type="np",
        **common,
        **arguments_of(sources, bivdiff),
    ).images
    frames = to_bytes(made)
    if sources.mask is not None and sources.video is not None:  # the rest stays, without the VAE's losses
        frames = np.where(sources.mask[..., None] > 0, frames, sources.video)
    return frames


def arguments_of(sources: Sources, bivdiff: BivdiffSettings) -> dict[str, Any]:
    """The arguments of the task's pipeline besides prompts and noise."""
    if bivdiff.task in ADAPTERS:
        assert sources.control is not None
        scale = f"{ADAPTERS[bivdiff.task][0]}_conditioning_scale"
        return {"image": to_pictures(sources.control), scale: bivdiff.control_scale}
    assert sources.video is not None
    image = {"image": to_pictures(sources.video)}
    if bivdiff.task == "instruct_pix2pix":
        return image | {"image_guidance_scale": bivdiff.image_guidance}
    assert sources.mask is not None
    height, width = sources.video.shape[1:3]
    return image | {"mask_image": to_pictures(sources.mask), "height": height, "width": width}


def to_pictures(frames: np.ndarray) -> list[Image.Image]:
    """Frames as Pillow's images."""
    return [Image.fromarray(frame) for frame in frames]


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0..1 as uint8."""
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
