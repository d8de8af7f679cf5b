"""Build a training's model and loss; check pre-trained weights (train.init) and the prior against the cache."""

from typing import Any

import torch
from torch import nn

from ..data.cache.info import CacheSpec
from ..errors import UserError
from ..models.build import build_image_to_video, build_prior, load_prior
from ..models.checkpoints.cogvideox import read_transformer, widened
from ..models.checkpoints.exports import is_diffusers, is_export, load_export, local_copy, read_config
from ..models.checkpoints.latte import CLASS_TABLE, bridge_state_from_diffusion, remap_classes
from ..models.checkpoints.published import load_published
from ..models.checkpoints.videocrafter import state_from_published
from ..models.checkpoints.weights import State, WeightsError, load_strict
from ..models.files.paths import shipped_path
from ..models.image_encoder import load_image_encoder
from ..models.image_to_video import VideoNetwork
from ..models.latte import Latte
from ..models.prior import NeuralPrior
from ..models.vae import load_vae
from ..models.videocrafter import VideoCrafter
from ..settings import VideoModelSettings
from .adapters import choose_trained
from .losses import Loss, class_map, finetune_loss, prior_loss
from .spec import TrainSpec

KINDS = {"finetune": "image_to_video", "prior": "prior"}


def untrained(spec: TrainSpec) -> NeuralPrior | VideoNetwork:
    """Build the job's model for the latents and classes of the cache; on the meta device only its shape."""
    shape, classes = spec.cache.latent_shape, len(spec.cache.classes)
    checkpointing = spec.train.activation_checkpointing
    if not isinstance(spec.model, VideoModelSettings):
        return build_prior(spec.model, shape, classes, checkpointing)
    return build_image_to_video(spec.model, shape, classes, spec.cache.text_shape, checkpointing)


def initial_model(spec: TrainSpec) -> tuple[NeuralPrior | VideoNetwork, str]:
    """Build the job's model with its initial weights, frozen where not trained; say where the weights come from."""
    model = untrained(spec)
    model.initialise(spec.run.seed)
    initialised_from = load_initial(spec, model.backbone)
    freeze(spec, model.backbone)
    return model, initialised_from


def freeze(spec: TrainSpec, backbone: nn.Module) -> None:
    """Freeze what train.trainable and train.lora leave out of `backbone`, and put adapters in. Raises UserError."""
    name = spec.model.backbone if isinstance(spec.model, VideoModelSettings) else "latte"
    choose_trained(spec.key, backbone, name, spec.train, spec.run.seed)


def build_loss(spec: TrainSpec, model: NeuralPrior | VideoNetwork, device: torch.device) -> Loss:
    """Build the loss of `model`, with the frozen models that it needs. Raises UserError or WeightsMismatch."""
    if isinstance(model, NeuralPrior):
        return prior_loss
    dtype = torch.bfloat16 if spec.train.precision == "bfloat16" else torch.float32
    image_encoder = frozen = same_classes = None
    if "image_features" in model.conditions:
        assert isinstance(spec.model, VideoModelSettings)
        vae = load_vae(spec.vae.path, spec.vae.dtype, device)
        image_encoder = load_image_encoder(spec.model, vae, dtype, device)
    if spec.prior_export and not spec.bridge.cached_prior:
        frozen, classes = load_frozen_prior(spec.prior_export)
        frozen, same_classes = frozen.to(device, dtype), class_map(spec.cache.classes, classes)
    return finetune_loss(model.conditions, spec.bridge, frozen, same_classes, image_encoder)


def load_initial(spec: TrainSpec, target: nn.Module) -> str:
    """Load train.init into the backbone `target` (on the meta device: only check that it fits); say what was loaded.

    Raises UserError, WeightsError or WeightsMismatch.
    """
    if spec.train.init is None:
        return "from scratch"
    key, path, classes = f"{spec.key}.init", shipped_path(spec.train.init), spec.cache.classes
    with local_copy(path) as local:
        known: list[str] | None = None
        try:
            if is_export(path) and not is_diffusers(path):
                check_initial(spec, read_config(path, key))
                state, config = load_export(local)
                known = config["classes"]
            else:
                state = load_published(local) if isinstance(target, Latte | VideoCrafter) else read_transformer(local)
            state, kept = fit(spec, state, known, target)
            load_strict(target, state, spec.train.init)
        except WeightsError as error:
            raise type(error)(f"{key} = {spec.train.init}: {error}") from error
    told = f", {kept} of {len(classes)} classes known" if isinstance(target, Latte) else ""
    return f"from {spec.train.init}: {len(state)} tensors{told}"


def fit(spec: TrainSpec, state: State, known: list[str] | None, target: nn.Module) -> tuple[State, int]:
    """Fit weights to `target` by the published model's own surgery; also return how many classes they know.

    `known` names the classes of the weights. A published checkpoint names none: as many are taken to be the same in the
    same order; otherwise each starts as the null class.
    """
    if isinstance(target, VideoCrafter):
        return state_from_published(state, target), 0
    if not isinstance(target, Latte):
        return widened(state, target), 0
    if spec.job == "finetune":
        state = bridge_state_from_diffusion(state, target)
    classes = spec.cache.classes
    if known is None:
        rows = len(state[CLASS_TABLE]) - 1 if CLASS_TABLE in state else len(classes)
        if rows == len(classes):
            return state, len(classes)
        known = [f"unnamed {i}" for i in range(rows)]
    return remap_classes(state, known, classes)


def check_initial(spec: TrainSpec, config: dict[str, Any]) -> None:
    """Raise UserError if the export train.init, with this config, cannot start the job."""
    path, saf = spec.train.init, spec.job == "finetune" and spec.bridge.saf
    given = f"{spec.key}.init = {path}"
    if config["kind"] != KINDS[spec.job]:
        raise UserError(f"{given}: holds a {config['kind']} model, expected {KINDS[spec.job]}; give one, or set null")
    if saf and config["bridge"]["process"] != "diffusion":
        raise UserError(
            f"{given}: is a {config['bridge']['process']} model, but bridge.saf aligns the bridge to a diffusion "
            "model; give one (such as shipped:teacher), or set bridge.saf false to go on training a bridge"
        )
    ours = spec.bridge.model_dump(mode="json")
    for name, value in config["bridge"].items():
        if saf and name.startswith("pretrained_") and value != ours.get(name):
            raise UserError(
                f"bridge.{name} = {ours.get(name)}: SAF aligns to the schedule of the pre-trained model, and {path} "
                f"was trained with {value}; set it alike"
            )
    check_latents(given, config, spec.cache)


def check_latents(given: str, config: dict[str, Any], cache: CacheSpec) -> None:
    """Raise UserError if an export, `given` by a setting, was trained on other latents than the cache's."""
    if config["latent_shape"] != cache.latent_shape:
        trained_on, cached = (" x ".join(map(str, shape)) for shape in (config["latent_shape"], cache.latent_shape))
        raise UserError(
            f"{given}: was trained on latents of {trained_on}, the cache has {cached} (frames x channels x height x "
            "width); set data.frames, data.height and data.width alike and cache again, or give another"
        )
    vae = config["vae"]
    if vae["weights_hash"] != cache.vae_weights_hash or vae["scaling_factor"] != cache.scaling_factor:
        raise UserError(
            f"{given}: was trained on latents of the VAE {vae['path']} ({vae['weights_hash'][:12]}..., scaling "
            f"{vae['scaling_factor']:g}), the cache is of another ({cache.vae_weights_hash[:12]}..., "
            f"{cache.scaling_factor:g}); cache again with that VAE (vae.path), or give another"
        )


def check_prior(path: str, cache: CacheSpec) -> None:
    """Check the neural prior's export by its config.json. Raises UserError if it is missing or does not fit."""
    remedy = "run jobs/train_prior.py first, or set bridge.prior replicated and model.prior_condition false"
    if not is_export(shipped_path(path)):
        raise UserError(f"{path}: no neural prior there (bridge.prior_path); {remedy}")
    config = read_config(shipped_path(path), "bridge.prior_path")
    if config["kind"] != "prior":
        raise UserError(f"{path}: holds a {config['kind']} model, expected prior (bridge.prior_path); {remedy}")
    check_latents(f"bridge.prior_path = {path}", config, cache)


def load_frozen_prior(path: str) -> tuple[NeuralPrior, list[str]]:
    """Load the neural prior, in eval mode on the CPU, and its classes. Raises UserError or WeightsMismatch."""
    with local_copy(shipped_path(path)) as local:
        prior, config = load_prior(local)
    return prior, config["classes"]
