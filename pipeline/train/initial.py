"""What training starts from: pre-trained weights (train.init) and the frozen neural prior, checked with the cache."""

from typing import Any, Literal

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
from ..models.image_encoder import ImageEncoder, load_image_encoder
from ..models.image_to_video import VideoNetwork
from ..models.latte import Latte
from ..models.prior import NeuralPrior
from ..models.vae import load_vae
from ..models.videocrafter import VideoCrafter
from ..settings import ModelSettings, Settings, TrainSettings, VideoModelSettings
from .adapters import choose_trained

Job = Literal["finetune", "prior"]
KINDS = {"finetune": "image_to_video", "prior": "prior"}


def load_initial(job: Job, settings: Settings, spec: CacheSpec, target: nn.Module) -> str:
    """Load train.init into the backbone `target` (on the meta device: only check that it fits); what was kept, in words.

    Raises UserError, WeightsError or WeightsMismatch.
    """
    _, train = sections(job, settings)
    if train.init is None:
        return "from scratch"
    key = "train.init" if job == "finetune" else "prior.train.init"
    path = shipped_path(train.init)
    with local_copy(path) as local:
        known: list[str] | None = None
        if is_export(path) and not is_diffusers(path):
            check_initial(key, train.init, read_config(path, key), job, settings, spec)
            state, config = load_export(local)
            known = config["classes"]
        else:
            state = read_published(local, key, train.init, target)
        try:
            state, kept = fit(job, state, known, spec.classes, target)
            load_strict(target, state, train.init)
        except WeightsError as error:
            raise type(error)(f"{key} = {train.init}: {error}") from error
    classes = f", {kept} of {len(spec.classes)} classes known" if isinstance(target, Latte) else ""
    return f"from {train.init}: {len(state)} tensors{classes}"


def read_published(path: str, key: str, name: str, target: nn.Module) -> State:
    """Tensors of a published checkpoint for a backbone: a file, or for CogVideoX a folder. Raises WeightsError."""
    try:
        return load_published(path) if isinstance(target, Latte | VideoCrafter) else read_transformer(path)
    except WeightsError as error:
        raise type(error)(f"{key} = {name}: {error}") from error


def fit(job: Job, state: State, known: list[str] | None, classes: list[str], target: nn.Module) -> tuple[State, int]:
    """Weights as `target` wants them, by each published model's own surgery; and how many classes they know."""
    if isinstance(target, VideoCrafter):
        return state_from_published(state, target), 0
    if not isinstance(target, Latte):
        return widened(state, target), 0
    if job == "finetune":
        state = bridge_state_from_diffusion(state, target)
    return fit_classes(state, known, classes)


def fit_classes(state: State, known: list[str] | None, classes: list[str]) -> tuple[State, int]:
    """Class embeddings for `classes`. A published checkpoint names none (`known` None): as many are taken to be the same
    in the same order; otherwise each starts as the null class."""
    if known is None:
        rows = len(state[CLASS_TABLE]) - 1 if CLASS_TABLE in state else len(classes)
        if rows == len(classes):
            return state, len(classes)
        known = [f"unnamed {i}" for i in range(rows)]
    return remap_classes(state, known, classes)


def check_initial(key: str, path: str, config: dict[str, Any], job: Job, settings: Settings, spec: CacheSpec) -> None:
    """Raise UserError if an export cannot start this job."""
    if config["kind"] != KINDS[job]:
        raise UserError(f"{key} = {path}: holds a {config['kind']} model, expected {KINDS[job]}; give one, or set null")
    if job == "finetune" and settings.bridge.saf and config["bridge"]["process"] != "diffusion":
        raise UserError(
            f"{key} = {path}: is a {config['bridge']['process']} model, but bridge.saf aligns the bridge to a diffusion "
            "model; give one (such as shipped:teacher), or set bridge.saf false to go on training a bridge"
        )
    if job == "finetune" and settings.bridge.saf:
        ours = settings.bridge.model_dump(mode="json")
        for name, value in config["bridge"].items():
            if name.startswith("pretrained_") and value != ours.get(name):
                raise UserError(
                    f"bridge.{name} = {ours.get(name)}: SAF aligns to the schedule of the pre-trained model, and {path} was "
                    f"trained with {value}; set it alike"
                )
    check_latents(f"{key} = {path}", config, spec)


def check_latents(what: str, config: dict[str, Any], spec: CacheSpec) -> None:
    """Raise UserError if an export was trained on other latents than the cache's."""
    if config["latent_shape"] != spec.latent_shape:
        raise UserError(
            f"{what}: was trained on latents of {_cross(config['latent_shape'])}, the cache has "
            f"{_cross(spec.latent_shape)} (frames x channels x height x width); set data.frames, data.height and "
            "data.width alike and cache again, or give another"
        )
    trained, cached = config["vae"], spec.vae_weights_hash
    if trained["weights_hash"] != cached or trained["scaling_factor"] != spec.scaling_factor:
        raise UserError(
            f"{what}: was trained on latents of the VAE {trained['path']} ({trained['weights_hash'][:12]}..., scaling "
            f"{trained['scaling_factor']:g}), the cache is of another ({str(cached)[:12]}..., "
            f"{spec.scaling_factor:g}); "
            "cache again with that VAE (vae.path), or give another"
        )


def check_prior(settings: Settings, spec: CacheSpec) -> str:
    """The neural prior's export, by config.json. Raises UserError if there is none or it does not fit."""
    path = settings.prior_export
    remedy = "run jobs/train_prior.py first, or set bridge.prior replicated and model.prior_condition false"
    if not is_export(shipped_path(path)):
        raise UserError(f"{path}: no neural prior there (bridge.prior_path); {remedy}")
    config = read_config(shipped_path(path), "bridge.prior_path")
    if config["kind"] != "prior":
        raise UserError(f"{path}: holds a {config['kind']} model, expected prior (bridge.prior_path); {remedy}")
    check_latents(f"bridge.prior_path = {path}", config, spec)
    return path


def load_frozen_prior(settings: Settings) -> tuple[NeuralPrior, list[str]]:
    """The neural prior in eval mode on the CPU, and its classes. Raises UserError or WeightsMismatch."""
    with local_copy(shipped_path(settings.prior_export)) as local:
        prior, config = load_prior(local)
    return prior, config["classes"]


def frozen_image_encoder(settings: Settings, dtype: torch.dtype, device: torch.device) -> ImageEncoder:
    """What makes image tokens of the image latent: vae.path's decoder, then model.unet3d.image_encoder. Raises UserError."""
    vae = load_vae(settings.vae.path, settings.vae.dtype, device)
    return load_image_encoder(settings.model, vae, dtype, device)


def _cross(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def uses_prior(job: Job, settings: Settings) -> bool:
    """Whether the neural prior takes part in the job's loss."""
    starts_there = settings.bridge.process == "bridge" and settings.bridge.prior == "neural"
    return job == "finetune" and (starts_there or settings.model.prior_condition)


def sections(job: Job, settings: Settings) -> tuple[ModelSettings, TrainSettings]:
    """The sections that the job is set by."""
    return (settings.model, settings.train) if job == "finetune" else (settings.prior.model, settings.prior.train)


def untrained(job: Job, settings: Settings, spec: CacheSpec) -> nn.Module:
    """The job's model for the latents and classes of the cache; on the meta device only its shape."""
    shape, classes = spec.latent_shape, len(spec.classes)
    if job == "prior":
        return build_prior(settings.prior.model, shape, classes, settings.prior.train.activation_checkpointing)
    checkpointing = settings.train.activation_checkpointing
    return build_image_to_video(settings.model, shape, classes, spec.text_shape, checkpointing)


def freeze(job: Job, settings: Settings, backbone: nn.Module) -> None:
    """Leave of the job's `backbone`, which has its initial weights, only those to be trained. Raises UserError."""
    model, train = sections(job, settings)
    name = model.backbone if isinstance(model, VideoModelSettings) else "latte"
    choose_trained("train" if job == "finetune" else "prior.train", backbone, name, train, settings.run.seed)


def initial_model(job: Job, settings: Settings, spec: CacheSpec) -> tuple[NeuralPrior | VideoNetwork, str]:
    """The job's model with its initial weights, those that are not trained frozen; what they start from, in words."""
    model = untrained(job, settings, spec)
    assert isinstance(model, NeuralPrior | VideoNetwork)
    model.initialise(settings.run.seed)
    initialised_from = load_initial(job, settings, spec, model.backbone)
    freeze(job, settings, model.backbone)
    return model, initialised_from
