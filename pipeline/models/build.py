"""Build networks and bridges from settings, and load networks from exports."""

import inspect
from typing import Any

import torch
from torch import Tensor

from ..bridge.alignment import aligned_timesteps
from ..bridge.bridge import Bridge
from ..bridge.schedule import SCHEDULES, bridge_grid, ddpm_alphas_cumprod
from ..errors import UserError
from ..settings import BridgeSettings, ModelSettings, VideoModelSettings
from .checkpoints.exports import load_export
from .checkpoints.weights import State, load_strict
from .files.paths import shipped_path
from .image_to_video import CogVideoXImageToVideo, ImageToVideo, VideoCrafterImageToVideo, VideoNetwork
from .latte import LATTE_SIZES, Latte, LatteSize
from .prior import NeuralPrior
from .resampler import Resampler
from .unet3d import UNet3D
from .videocrafter import VideoCrafter


def build_bridge(bridge: BridgeSettings) -> Bridge:
    """Build the bridge on its grid, in float64 on the CPU; bridge.saf aligns it to the pre-trained schedule."""
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


def dimensions(model: ModelSettings) -> LatteSize:
    """Return a Latte's dimensions, from the named size or as set one by one."""
    if model.size is not None:
        return LATTE_SIZES[model.size]
    assert model.depth and model.hidden_size and model.num_heads
    return LatteSize(model.depth, model.hidden_size, model.num_heads)


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
    frames, channels = latent_shape[:2]
    if model.backbone == "latte":
        backbone = _latte(
            model,
            latent_shape,
            num_classes,
            in_channels=channels * 2 if model.prior_condition else channels,
            num_frames=frames + 1 if model.image_condition == "frame" else frames,
            activation_checkpointing=activation_checkpointing,
        )
        assert model.image_condition != "channels"
        return ImageToVideo(backbone, model.image_condition, model.prior_condition)
    if text_shape is None:
        raise UserError(f"model.backbone = {model.backbone} takes text, the cache has none; set text.path, cache again")
    if model.backbone == "unet3d":
        return _videocrafter(model, latent_shape, text_shape[1], activation_checkpointing)
    return _cogvideox(model, channels, text_shape, activation_checkpointing)


def _latte(model: ModelSettings, latent_shape: list[int], num_classes: int, **others: Any) -> Latte:
    """Build a Latte for these latents; `others` are its other arguments."""
    frames, channels, height, width = latent_shape
    if height != width:
        raise UserError(
            f"data.height x data.width give latents of {height} x {width}, but Latte needs square ones; make them equal"
        )
    sizes = {"num_frames": frames, "in_channels": channels, **dimensions(model)._asdict(), **others}
    return Latte(
        input_size=height, patch_size=model.patch_size, out_channels=channels, num_classes=num_classes, **sizes
    )


def _videocrafter(
    model: VideoModelSettings, latent_shape: list[int], text_width: int, activation_checkpointing: bool
) -> VideoCrafterImageToVideo:
    sizes, (frames, channels, height, width) = model.unet3d, latent_shape
    assert sizes is not None
    smallest = 2 ** (len(sizes.channel_mult) - 1)
    if height % smallest or width % smallest:
        raise UserError(
            f"data.height x data.width give latents of {height} x {width}, which the U-Net's {len(sizes.channel_mult)} "
            f"levels halve {len(sizes.channel_mult) - 1} times; choose multiples of {8 * smallest}"
        )
    unet = UNet3D(
        in_channels=2 * channels,
        out_channels=channels,
        text_size=text_width,
        image_tokens=sizes.image_encoder is not None,
        activation_checkpointing=activation_checkpointing,
        **sizes.model_dump(include=set(inspect.signature(UNet3D).parameters)),  # the section uses its names
    )
    resampler = None
    if sizes.image_encoder is not None:
        own = {name.removeprefix("resampler_"): value for name, value in sizes if name.startswith("resampler_")}
        resampler = Resampler(frames=frames, embedding_size=sizes.image_width, out_size=text_width, **own)
    return VideoCrafterImageToVideo(VideoCrafter(unet, resampler))


def _cogvideox(
    model: VideoModelSettings, channels: int, text_shape: list[int], activation_checkpointing: bool
) -> CogVideoXImageToVideo:
    from diffusers import CogVideoXTransformer3DModel  # slow import; other backbones skip it

    assert model.cogvideox is not None
    with torch.random.fork_rng(devices=[]):
        transformer = CogVideoXTransformer3DModel(
            **model.cogvideox.model_dump(),
            in_channels=2 * channels,
            out_channels=channels,
            patch_size=model.patch_size,
            text_embed_dim=text_shape[1],
            max_text_seq_length=text_shape[0],
        )
    if activation_checkpointing:
        transformer.enable_gradient_checkpointing()
    return CogVideoXImageToVideo(transformer)


def build_prior(
    model: ModelSettings, latent_shape: list[int], num_classes: int, activation_checkpointing: bool = False
) -> NeuralPrior:
    """Build an untrained neural prior F_eta: a Latte without time embedding (eq. 8)."""
    others = {"time_embedding": False, "activation_checkpointing": activation_checkpointing}
    return NeuralPrior(_latte(model, latent_shape, num_classes, **others))


def load_model(path: str) -> tuple[VideoNetwork, dict[str, Any]]:
    """Load the video network of an export folder, in eval mode, and its config.json.

    Raises UserError or WeightsMismatch.
    """
    state, config = _load(path, "image_to_video", "jobs/finetune.py (sample.model_path, train.init)")
    model, classes = video_model(config), len(config["classes"])
    module = build_image_to_video(model, config["latent_shape"], classes, config.get("text_shape"))
    load_strict(module.backbone, state, path)
    return module.eval().requires_grad_(False), config


def video_model(config: dict[str, Any]) -> VideoModelSettings:
    """Return the model settings of an export. Exports from before there were other backbones hold a Latte."""
    return VideoModelSettings(**{"backbone": "latte", "unet3d": None, "cogvideox": None, **config["model"]})


def prior_model(config: dict[str, Any]) -> ModelSettings:
    """Return the model settings of a neural prior's export. Earlier versions wrote conditions there, without effect."""
    known = config["model"].keys() & ModelSettings.model_fields.keys()
    return ModelSettings(**{name: config["model"][name] for name in known})


def load_prior(path: str) -> tuple[NeuralPrior, dict[str, Any]]:
    """Load the neural prior of an export folder, in eval mode, and its config.json.

    Raises UserError or WeightsMismatch.
    """
    state, config = _load(path, "prior", "jobs/train_prior.py (bridge.prior_path)")
    module = build_prior(prior_model(config), config["latent_shape"], len(config["classes"]))
    load_strict(module.backbone, state, path)
    return module.eval().requires_grad_(False), config


def _load(path: str, kind: str, job: str) -> tuple[State, dict[str, Any]]:
    state, config = load_export(shipped_path(path))
    if config.get("kind") != kind:
        raise UserError(f"{path}: holds a {config.get('kind')} model, expected {kind}; give the export of {job}")
    return state, config


def class_indices(labels: list[str], classes: list[str]) -> Tensor:
    """Return class indices (B,), int64; unknown names and "" get the null class, len(classes)."""
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index.get(label, len(classes)) for label in labels], dtype=torch.int64)
