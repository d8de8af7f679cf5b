"""diffusers' pipelines with random weights, small enough for tests, in the folders in which they are published."""

from pathlib import Path
from typing import Any

import torch
from helpers.tiny_text import TOKENS, save_tiny_clip
from helpers.tiny_vae import tiny_vae

SIDE = 32  # pixels: latents of 4 x 4
UNET = {
    "sample_size": SIDE // 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def parts(folder: Path, seed: int, **scheduler: Any) -> dict[str, Any]:
    """VAE, text encoder, tokenizer and scheduler of Stable Diffusion; seed 0's VAE in all of them."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    text = folder.with_name(f"{folder.name}-text")
    text.mkdir(parents=True)
    save_tiny_clip(text, seed)
    torch.manual_seed(seed)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return {
        "vae": tiny_vae(),
        "text_encoder": CLIPTextModel.from_pretrained(text),
        "tokenizer": CLIPTokenizer.from_pretrained(text, model_max_length=TOKENS),
        "scheduler": DDIMScheduler(**{**schedule, "clip_sample": False, "set_alpha_to_one": False, **scheduler}),
    }


def save_image_model(folder: Path, in_channels: int = 4, seed: int = 1) -> str:
    """Stable Diffusion (4 input channels), Instruct Pix2Pix (8) or Stable Diffusion Inpainting (9)."""
    import diffusers

    with torch.random.fork_rng():
        built = parts(folder, seed)
        unet = diffusers.UNet2DConditionModel(
            in_channels=in_channels,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **UNET,
        )
    kinds = {
        4: "StableDiffusionPipeline",
        8: "StableDiffusionInstructPix2PixPipeline",
        9: "StableDiffusionInpaintPipeline",
    }
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(diffusers, kinds[in_channels])(unet=unet, **built, **without).save_pretrained(folder)
    return str(folder)


def save_video_model(folder: Path, seed: int = 2, **scheduler: Any) -> str:
    """diffusers' text-to-video, as ZeroScope is; its schedule is Stable Diffusion's unless `scheduler` says other."""
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel

    with torch.random.fork_rng():
        built = parts(folder, seed, **scheduler)
        unet = UNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            **UNET,
        )
        for parameter in unet.parameters():  # its temporal layers begin with zeros
            parameter.data.add_(0.02 * torch.randn(parameter.shape))
    TextToVideoSDPipeline(unet=unet, **built).save_pretrained(folder)
    return str(folder)


def save_controlnet(folder: Path, image_model: str) -> str:
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(f"{image_model}/unet")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
        for parameter in controlnet.parameters():  # its last layers begin with zeros
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    controlnet.save_pretrained(folder)
    return str(folder)


def save_t2i_adapter(folder: Path) -> str:
    from diffusers import T2IAdapter

    with torch.random.fork_rng():
        torch.manual_seed(4)
        T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter"
        ).save_pretrained(folder)
    return str(folder)
