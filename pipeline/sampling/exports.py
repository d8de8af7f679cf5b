"""Find the exports to sample with, and check that VAE, text encoder and sampler go with them."""

from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import UserError
from ..models.build import load_model
from ..models.checkpoints.exports import WEIGHTS_FILE, is_export, local_copy, read_config
from ..models.checkpoints.weights_hash import weights_sha256
from ..models.files.paths import shipped_path
from ..models.files.text import find_text_encoder, text_identity
from ..models.image_to_video import VideoNetwork
from ..models.prior import NeuralPrior
from ..settings import BridgeSettings, SampleSettings, TextSettings
from ..train.initial import load_frozen_prior


class Exports(NamedTuple):
    """A model and its neural prior, as their config.json describe them."""

    model_path: str
    config: dict[str, Any]
    bridge: BridgeSettings  # as trained
    prior_path: str | None  # None: the image is replicated

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return F, C, h, w."""
        frames, channels, height, width = self.config["latent_shape"]
        return frames, channels, height, width

    def sampler(self, sample: SampleSettings) -> str:
        """Return sample.sampler, or the sampler that `auto` chooses for the model's process."""
        if sample.sampler != "auto":
            return sample.sampler
        return "sde_first_order" if self.bridge.process == "bridge" else "ddim"


def find_exports(path: str, bridge: BridgeSettings, run_folder: str) -> Exports:
    """Find the model at `path` and the neural prior that it was trained with. Raises UserError.

    The prior is at bridge.prior_path, or else where the model's config.json says, or else in the run's folder.
    """
    config = read_config(shipped_path(path), "sample.model_path", "train one with jobs/finetune.py")
    trained = {name: value for name, value in config["bridge"].items() if name in BridgeSettings.model_fields}
    as_trained = BridgeSettings.model_construct(**{**dict(bridge), **trained})  # an old export lacks new settings
    if not (as_trained.starts_at_neural_prior or config["model"]["prior_condition"]):
        return Exports(path, config, as_trained, None)
    prior_path = bridge.prior_path or f"{run_folder}/prior/export"
    recorded = config.get("prior_export")
    with suppress(OSError):  # a folder of somebody else
        if bridge.prior_path is None and recorded and is_export(shipped_path(recorded)):
            prior_path = recorded
    prior = read_config(shipped_path(prior_path), "bridge.prior_path", "train one with jobs/train_prior.py")
    exports = Exports(path, config, as_trained, prior_path)
    remedy = "set bridge.prior_path to the prior of that model"
    check_trained_latents(exports, prior_path, prior["latent_shape"], prior["vae"]["weights_hash"], remedy)
    return exports


def check_trained_latents(exports: Exports, holder: str, latent_shape: object, vae_hash: object, remedy: str) -> None:
    """Raise UserError unless `holder`, a prior or a cache, has the latents that the model was trained on."""
    for what, found, trained in (
        ("latents of F, C, h, w =", latent_shape, exports.config["latent_shape"]),
        ("latents of a VAE with hash", vae_hash, exports.config["vae"]["weights_hash"]),
    ):
        if found != trained:
            raise UserError(f"{holder}: has {what} {found}, {exports.model_path} was trained on {trained}; {remedy}")


def check_encoders(exports: Exports, vae_path: str, vae_hash: str, text: TextSettings) -> None:
    """Raise UserError unless the VAE, and the encoder of a model with text, are those that it was trained with."""
    model, config = exports.model_path, exports.config
    if config["vae"]["weights_hash"] != vae_hash:
        raise UserError(
            f"vae.path = {vae_path}: weights {vae_hash[:12]}..., but {model} was trained on latents of "
            f"{config['vae']['path']} ({config['vae']['weights_hash'][:12]}...); set vae.path to that VAE"
        )
    trained = config.get("text")
    if config["model"].get("backbone", "latte") == "latte" or trained is None:
        return
    if text.path is None:
        raise UserError(f"{model}: was trained with text; set text.path to its encoder")
    text_hash = text_identity(find_text_encoder(text.path, text.tokenizer))
    given = {"text.layer": text.layer, "text.max_length": text.max_length, "text.path (hash of its files)": text_hash}
    for key, value in given.items():
        if trained[key] != value:
            raise UserError(f"{model}: was trained with {key} = {trained[key]}, not {value}; set it alike")


def export_sha256(export: str) -> str:
    """Return the SHA-256 of an export's weights. Raises UserError if there are none."""
    try:
        return weights_sha256([f"{shipped_path(export)}/{WEIGHTS_FILE}"])
    except FileNotFoundError as error:
        raise UserError(f"{export}: {WEIGHTS_FILE} is missing; export again, or set sample.model_path") from error


def load_networks(exports: Exports) -> tuple[VideoNetwork, NeuralPrior | None, list[str]]:
    """Load the model, the prior and the prior's classes, on the CPU. Raises UserError or WeightsMismatch."""
    with local_copy(exports.model_path) as path:
        model, _ = load_model(path)
    if exports.prior_path is None:
        return model, None, []
    return model, *load_frozen_prior(exports.prior_path)


def check_sampler(exports: Exports, sample: SampleSettings) -> None:
    """Raise UserError if the sampler is not for the process that the model was trained for."""
    path, process, name = exports.model_path, exports.bridge.process, exports.sampler(sample)
    if (name == "ddim") != (process == "diffusion"):
        other = "ddim or auto" if process == "diffusion" else "auto, or any but ddim"
        raise UserError(f"sample.sampler = {name}: {path} is a {process} model; set {other}")
    if process == "bridge" and (sample.start < 1 or sample.analytic_init is not None):
        raise UserError(
            f"sample.start = {sample.start}, sample.analytic_init = {sample.analytic_init}: they choose the noise "
            f"that diffusion starts from, but {path} is a bridge; set start 1 and analytic_init null"
        )
    model = exports.config["model"]
    takes_tokens = model.get("backbone") == "unet3d" and model["unet3d"]["image_encoder"] is not None
    if sample.image_guidance is not None and not takes_tokens:
        raise UserError(
            f"sample.image_guidance = {sample.image_guidance}: guides image tokens, {path} takes none; set null"
        )
    if name == "sde_first_order" and sample.eta > 0:
        raise UserError(f"sample.eta = {sample.eta} is of dbim and ddim; set sample.eta 0 or sample.sampler dbim")
