"""Published checkpoints in their true layouts, of tiny networks with random weights."""

from pathlib import Path

import torch
from helpers.tiny_networks import randomise
from helpers.tiny_text import save_tiny_clip, save_tiny_t5
from helpers.tiny_video_vae import save_tiny_video_vae

from pipeline.models.checkpoints.videocrafter import UNET
from pipeline.models.unet3d import UNet3D

UNET3D = {
    "model_channels": 32,
    "channel_mult": "[1,2]",
    "num_res_blocks": 1,
    "attention_levels": "[0]",
    "head_size": 16,
}
RESAMPLER = {
    "image_width": 80,
    "resampler_size": 16,
    "resampler_depth": 1,
    "resampler_heads": 2,
    "resampler_head_size": 8,
    "resampler_queries": 2,
}
COGVIDEOX = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 8,
    "sample_width": 4,
    "sample_height": 4,
    "sample_frames": 9,
}
TEXT_TOKENS, TEXT_WIDTH = 12, 16


def save_text_to_video(folder: Path) -> dict[str, str]:
    """VideoCrafter/Text2Video-256's layout, and the encoders: {"init", "text", "image"} as paths."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    unet = UNet3D(
        in_channels=4,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        head_size=16,
        text_size=TEXT_WIDTH,
        image_tokens=False,
    )
    randomise(unet)
    state = {UNET + name: value for name, value in unet.state_dict().items()}
    state |= {"first_stage_model.quant_conv.bias": torch.ones(8), "cond_stage_model.model.logit_scale": torch.ones(())}
    torch.save({"state_dict": state, "global_step": 3}, folder / "model.ckpt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=80,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=28,
            patch_size=14,
        )
        CLIPVisionModel(config).save_pretrained(folder / "image")
    text = save_tiny_clip(folder / "text")
    return {"init": str(folder / "model.ckpt"), "text": text, "image": str(folder / "image")}


def save_cogvideox(folder: Path) -> dict[str, str]:
    """CogVideoX-2B's folder in diffusers' layout: {"init", "text", "vae"} as paths."""
    from diffusers import CogVideoXTransformer3DModel

    folder.mkdir()
    text = save_tiny_t5(folder)
    vae = save_tiny_video_vae(folder / "vae")
    with torch.random.fork_rng():
        transformer = CogVideoXTransformer3DModel(
            **COGVIDEOX, in_channels=16, out_channels=16, text_embed_dim=TEXT_WIDTH, max_text_seq_length=TEXT_TOKENS
        )
    randomise(transformer)
    transformer.save_pretrained(folder / "transformer")
    return {"init": str(folder), "text": text, "vae": vae}
