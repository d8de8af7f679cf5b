"""Settings -> modules, and exports -> modules: the one place where a network's shape is decided."""

from typing import Any

import torch

from pipeline.models.image_to_video import ImageToVideo
from pipeline.models.latte import LATTE_SIZES, Latte
from pipeline.models.paths import shipped_path
from pipeline.models.prior import NeuralPrior
from pipeline.models.weights import load_export, load_strict
from pipeline.settings import ModelSettings, UserError


def dimensions(model: ModelSettings) -> tuple[int, int, int]:
    """(depth, hidden_size, num_heads), from the named size or as set."""
    if model.size is not None:
        return LATTE_SIZES[model.size]
    assert model.depth and model.hidden_size and model.num_heads
    return model.depth, model.hidden_size, model.num_heads


def build_image_to_video(
    model: ModelSettings, latent_shape: list[int], num_classes: int, activation_checkpointing: bool = False
) -> ImageToVideo:
    """An untrained video network for latents of `latent_shape` = [F, C, h, w]."""
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
    return ImageToVideo(backbone, image_condition=model.image_condition, prior_condition=model.prior_condition)


def build_prior(
    model: ModelSettings, latent_shape: list[int], num_classes: int, activation_checkpointing: bool = False
) -> NeuralPrior:
    """An untrained neural prior F_eta: a Latte without time embedding (eq. 8)."""
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
    """Latte's position embedding is square, as in the authors' code."""
    if height != width:
        raise UserError(
            f"data.height x data.width give latents of {height} x {width}, but Latte's are square; set both alike"
        )
    return height


def load_model(path: str) -> tuple[ImageToVideo, dict[str, Any]]:
    """The video network of an export folder, in eval mode, and its config.json. Raises UserError or WeightsMismatch."""
    state, config = load_export(shipped_path(path))
    _expect(config, "image_to_video", path)
    module = build_image_to_video(ModelSettings(**config["model"]), config["latent_shape"], len(config["classes"]))
    load_strict(module.backbone, state, path)
    return module.eval().requires_grad_(False), config


def load_prior(path: str) -> tuple[NeuralPrior, dict[str, Any]]:
    """The neural prior of an export folder, in eval mode, and its config.json. Raises UserError or WeightsMismatch."""
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


def class_indices(labels: list[str], classes: list[str]) -> torch.Tensor:
    """(B,) int64 class indices; a name the model does not know, and "", is the null class (index len(classes))."""
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index.get(label, len(classes)) for label in labels], dtype=torch.int64)
