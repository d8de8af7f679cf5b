"""Build networks and bridges from settings, and load networks from exports."""

from typing import Any

import torch
from torch import Tensor

from ..bridge.alignment import aligned_timesteps
from ..bridge.bridge import Bridge
from ..bridge.schedule import SCHEDULES, bridge_grid, ddpm_alphas_cumprod
from ..errors import UserError
from ..settings import BridgeSettings, ModelSettings, VideoModelSettings
from .checkpoints.exports import load_export
from .checkpoints.weights import load_strict
from .cogvideox import build_transformer
from .files.paths import shipped_path
from .image_to_video import CogVideoXImageToVideo, ImageToVideo, VideoCrafterImageToVideo, VideoNetwork
from .latte import LATTE_SIZES, Latte
from .prior import NeuralPrior
from .resampler import Resampler
from .unet3d import UNet3D
from .videocrafter import VideoCrafter


def build_bridge(bridge: BridgeSettings) -> Bridge:
    """Build the bridge on its grid, in float64 on the CPU; with bridge.saf it is aligned to the pre-trained schedule."""
    table = bridge_grid(SCHEDULES[bridge.schedule](bridge.beta0, bridge.beta1))
    aligned_t = aligned_timesteps(table, pretrained_schedule(bridge), bridge.saf_edge) if bridge.saf else None
    return Bridge(table, aligned_t, bridge.target, bridge.loss_weight)


def pretrained_schedule(bridge: BridgeSettings) -> Tensor:
    """Tabulate alphas_cumprod (1000,) float64: diffusion runs on them, and SAF aligns a bridge to them."""
    return ddpm_alphas_cumprod(
        bridge.pretrained_beta_start,
        bridge.pretrained_beta_end,
        scaled=bridge.pretrained_betas == "scaled_linear",
        snr_shift=bridge.pretrained_snr_shift,
        zero_terminal_snr=bridge.pretrained_zero_terminal_snr,
    )


def dimensions(model: ModelSettings) -> tuple[int, int, int]:
    """Return (depth, hidden_size, num_heads), from the named size or as set one by one."""
    if model.size is not None:
        return LATTE_SIZES[model.size]
    assert model.depth and model.hidden_size and model.num_heads
    return model.depth, model.hidden_size, model.num_heads


def build_image_to_video(
    model: VideoModelSettings,
    latent_shape: list[int],
    num_classes: int,
    text_shape: list[int] | None = None,
    activation_checkpointing: bool = False,
) -> VideoNetwork:
    """Build an untrained video network for latents of `latent_shape` = [F, C, h, w] and text of [tokens, width].

    Raises UserError where the backbone takes text and the latents have none.
    """
    if model.backbone == "latte":
        return _latte(model, latent_shape, num_classes, activation_checkpointing)
    if text_shape is None:
        raise UserError(
            f"model.backbone = {model.backbone} takes text, but the cache holds none; set text.path and cache again"
        )
    if model.backbone == "unet3d":
        return _videocrafter(model, latent_shape, text_shape[1], activation_checkpointing)
    return _cogvideox(model, latent_shape, text_shape, activation_checkpointing)


def _latte(
    model: VideoModelSettings, latent_shape: list[int], num_classes: int, activation_checkpointing: bool
) -> ImageToVideo:
    frames, channels, height, width = latent_shape
    depth, hidden_size, num_heads = dimensions(model)
    backbone = Latte(
        input_size=square(height, width),
        patch_size=model.patch_size,
        in_channels=channels * 2 if model.prior_condition else channels,
        out_channels=channels,
        num_frames=frames + 1 if model.image_condition == "frame" else frames,
        num_classes=num_classes,
        activation_checkpointing=activation_checkpointing,
        depth=depth,
        hidden_size=hidden_size,
        num_heads=num_heads,
    )
    assert model.image_condition != "channels"
    return ImageToVideo(backbone, image_condition=model.image_condition, prior_condition=model.prior_condition)


def _videocrafter(
    model: VideoModelSettings, latent_shape: list[int], text_width: int, activation_checkpointing: bool
) -> VideoCrafterImageToVideo:
    sizes, (frames, channels, height, width) = model.unet3d, latent_shape
    assert sizes is not None
    smallest = 2 ** (len(sizes.channel_mult) - 1)
    if height % smallest or width % smallest:
        raise UserError(
            f"data.height x data.width give latents of {height} x {width}, which the U-Net's {len(sizes.channel_mult)} levels "
            f"halve {len(sizes.channel_mult) - 1} times; choose multiples of {8 * smallest}"
        )
    unet = UNet3D(
        in_channels=2 * channels,
        out_channels=channels,
        model_channels=sizes.model_channels,
        channel_mult=sizes.channel_mult,
        num_res_blocks=sizes.num_res_blocks,
        attention_levels=sizes.attention_levels,
        head_size=sizes.head_size,
        text_size=text_width,
        image_tokens=sizes.image_encoder is not None,
        dropout=sizes.dropout,
        activation_checkpointing=activation_checkpointing,
    )
    resampler = None
    if sizes.image_encoder is not None:
        resampler = Resampler(
            size=sizes.resampler_size,
            depth=sizes.resampler_depth,
            head_size=sizes.resampler_head_size,
            heads=sizes.resampler_heads,
            queries=sizes.resampler_queries,
            frames=frames,
            embedding_size=sizes.image_width,
            out_size=text_width,
        )
    return VideoCrafterImageToVideo(VideoCrafter(unet, resampler))


def _cogvideox(
    model: VideoModelSettings, latent_shape: list[int], text_shape: list[int], activation_checkpointing: bool
) -> CogVideoXImageToVideo:
    channels = latent_shape[1]
    assert model.cogvideox is not None
    transformer = build_transformer(
        {
            **model.cogvideox.model_dump(),
            "in_channels": 2 * channels,
            "out_channels": channels,
            "patch_size": model.patch_size,
            "text_embed_dim": text_shape[1],
            "max_text_seq_length": text_shape[0],
        }
    )
    if activation_checkpointing:
        transformer.enable_gradient_checkpointing()
    return CogVideoXImageToVideo(transformer)


def build_prior(
    model: ModelSettings, latent_shape: list[int], num_classes: int, activation_checkpointing: bool = False
) -> NeuralPrior:
    """Build an untrained neural prior F_eta: a Latte without time embedding (eq. 8)."""
    frames, channels, height, width = latent_shape
    depth, hidden_size, num_heads = dimensions(model)
    backbone = Latte(
        input_size=square(height, width),
        patch_size=model.patch_size,
        in_channels=channels,
        out_channels=channels,
        num_frames=frames,
        num_classes=num_classes,
        time_embedding=False,
        activation_checkpointing=activation_checkpointing,
        depth=depth,
        hidden_size=hidden_size,
        num_heads=num_heads,
    )
    return NeuralPrior(backbone)


def square(height: int, width: int) -> int:
    """Return the side of square latents, which the authors' position embedding needs. Raises UserError."""
    if height != width:
        raise UserError(
            f"data.height x data.width give latents of {height} x {width}, but Latte needs square ones; make them equal"
        )
    return height


def load_model(path: str) -> tuple[VideoNetwork, dict[str, Any]]:
    """Load the video network of an export folder, in eval mode, and its config.json. Raises UserError or WeightsMismatch."""
    state, config = load_export(shipped_path(path))
    _expect(config, "image_to_video", path)
    module = build_image_to_video(
        video_model(config), config["latent_shape"], len(config["classes"]), config.get("text_shape")
    )
    load_strict(module.backbone, state, path)
    return module.eval().requires_grad_(False), config


def video_model(config: dict[str, Any]) -> VideoModelSettings:
    """Return the model settings of an export. Exports from before there were other backbones hold a Latte."""
    return VideoModelSettings(**{"backbone": "latte", "unet3d": None, "cogvideox": None, **config["model"]})


def load_prior(path: str) -> tuple[NeuralPrior, dict[str, Any]]:
    """Load the neural prior of an export folder, in eval mode, and its config.json. Raises UserError or WeightsMismatch."""
    state, config = load_export(shipped_path(path))
    _expect(config, "prior", path)
    module = build_prior(ModelSettings(**config["model"]), config["latent_shape"], len(config["classes"]))
    load_strict(module.backbone, state, path)
    return module.eval().requires_grad_(False), config


def _expect(config: dict[str, Any], kind: str, path: str) -> None:
    if config.get("kind") != kind:
        remedy = {
            "prior": "give the export of jobs/train_prior.py (bridge.prior_path)",
            "image_to_video": "give the export of jobs/finetune.py (sample.model_path, train.init)",
        }[kind]
        raise UserError(f"{path}: holds a {config.get('kind')} model, expected {kind}; {remedy}")


def class_indices(labels: list[str], classes: list[str]) -> Tensor:
    """Return class indices (B,), int64; unknown names and "" get the null class, len(classes)."""
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index.get(label, len(classes)) for label in labels], dtype=torch.int64)
