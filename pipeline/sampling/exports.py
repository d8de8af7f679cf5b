"""Find the exports to sample with, and check that VAE, text encoder and sampler go with them."""

from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from ..errors import UserError
from ..models.build import load_model, load_prior
from ..models.checkpoints.exports import WEIGHTS_FILE, is_export, local_copy, read_config
from ..models.checkpoints.weights_hash import weights_sha256
from ..models.files.paths import shipped_path
from ..models.files.text import find_text_encoder, text_identity
from ..models.image_to_video import VideoNetwork
from ..models.prior import NeuralPrior
from ..settings import BridgeSettings, SampleSettings, TextSettings


class Exports(NamedTuple):
    """What is sampled with, known from the exports' config.json alone."""

    model_path: str
    config: dict[str, Any]
    bridge: BridgeSettings  # as trained
    prior_path: str | None  # None: replicated image

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """F, C, h, w"""
        frames, channels, height, width = self.config["latent_shape"]
        return frames, channels, height, width


def find_exports(path: str, bridge: BridgeSettings, run_folder: str) -> Exports:
    """Find the model at `path` and the neural prior that it was trained with. Raises UserError.

    The prior is at bridge.prior_path, or else where the model's config.json says, or else in the run's folder.
    """
    config = read_config(shipped_path(path), "sample.model_path", "train one with jobs/finetune.py")
    trained = {name: value for name, value in config["bridge"].items() if name in BridgeSettings.model_fields}
    as_trained = BridgeSettings.model_construct(**{**dict(bridge), **trained})  # an old export lacks new settings
    prior_path = None
    if as_trained.starts_at_neural_prior or config["model"]["prior_condition"]:
        prior_path = bridge.prior_path or f"{run_folder}/prior/export"
        recorded = config.get("prior_export")
        with suppress(OSError):
            if bridge.prior_path is None and recorded and is_export(shipped_path(recorded)):
                prior_path = recorded
        prior = read_config(shipped_path(prior_path), "bridge.prior_path", "train one with jobs/train_prior.py")
        _check_alike(prior_path, prior, path, config)
    return Exports(path, config, as_trained, prior_path)


def _check_alike(prior_path: str, prior: dict[str, Any], model_path: str, model: dict[str, Any]) -> None:
    for what, ours, theirs in (
        ("latents of", prior["latent_shape"], model["latent_shape"]),
        ("a VAE with hash", prior["vae"]["weights_hash"], model["vae"]["weights_hash"]),
    ):
        if ours != theirs:
            raise UserError(
                f"{prior_path}: the prior was trained on {what} {ours}, the model {model_path} on {theirs}; "
                "set bridge.prior_path to the prior of that model"
            )


def check_vae(exports: Exports, vae_path: str, weights_hash: str) -> None:
    """Raise UserError if the VAE at hand is not the one that the model's latents come from."""
    trained = exports.config["vae"]
    if trained["weights_hash"] != weights_hash:
        raise UserError(
            f"vae.path = {vae_path}: weights {weights_hash[:12]}..., but {exports.model_path} was trained on latents of "
            f"{trained['path']} ({trained['weights_hash'][:12]}...); set vae.path to that VAE"
        )


def export_sha256(export: str) -> str:
    """SHA-256 of an export's weights. Raises UserError if there are none."""
    try:
        return weights_sha256([f"{shipped_path(export)}/{WEIGHTS_FILE}"])
    except FileNotFoundError as error:
        raise UserError(f"{export}: {WEIGHTS_FILE} is missing; export again, or set sample.model_path") from error


def load_networks(exports: Exports) -> tuple[VideoNetwork, NeuralPrior | None, list[str]]:
    """Model, prior and the prior's classes, on the CPU. Raises UserError or WeightsMismatch."""
    with ExitStack() as stack:
        model, _ = load_model(stack.enter_context(local_copy(exports.model_path)))
        if exports.prior_path is None:
            return model, None, []
        prior, config = load_prior(stack.enter_context(local_copy(exports.prior_path)))
        return model, prior, config["classes"]


def sampler_name(exports: Exports, how: SampleSettings) -> str:
    """sample.sampler, what auto stands for being said."""
    if how.sampler != "auto":
        return how.sampler
    return "sde_first_order" if exports.bridge.process == "bridge" else "ddim"


def check_sampler(exports: Exports, how: SampleSettings) -> None:
    """Raise UserError if the sampler is not for the process that the model was trained for."""
    name, process = sampler_name(exports, how), exports.bridge.process
    if (name == "ddim") != (process == "diffusion"):
        other = "ddim or auto" if process == "diffusion" else "auto, or any but ddim"
        raise UserError(f"sample.sampler = {name}: {exports.model_path} is a {process} model; set {other}")
    if process == "bridge" and (how.start < 1 or how.analytic_init is not None):
        raise UserError(
            f"sample.start = {how.start}, sample.analytic_init = {how.analytic_init}: they choose the noise that diffusion "
            f"starts from, but {exports.model_path} is a bridge, which starts at its prior; set start 1 and analytic_init null"
        )
    model = exports.config["model"]
    tokens = model.get("backbone") == "unet3d" and model["unet3d"]["image_encoder"] is not None
    if how.image_guidance is not None and not tokens:
        raise UserError(
            f"sample.image_guidance = {how.image_guidance}: guides image tokens, which {exports.model_path} does not take; "
            "set null"
        )
    if name == "sde_first_order" and how.eta > 0:
        raise UserError(f"sample.eta = {how.eta} is of dbim and ddim; set sample.eta 0 or sample.sampler dbim")


def check_text(exports: Exports, text: TextSettings) -> None:
    """Raise UserError if the model takes text and the encoder at hand is not the one that it was trained with."""
    trained = exports.config.get("text")
    if exports.config["model"].get("backbone", "latte") == "latte" or trained is None:
        return
    if text.path is None:
        raise UserError(f"{exports.model_path}: was trained with text; set text.path to its encoder")
    same: dict[str, Any] = {"text.layer": text.layer, "text.max_length": text.max_length}
    same["text.path (hash of its files)"] = text_identity(find_text_encoder(text.path, text.tokenizer))
    for key, value in same.items():
        if trained[key] != value:
            raise UserError(f"{exports.model_path}: was trained with {key} = {trained[key]}, not {value}; set it alike")
