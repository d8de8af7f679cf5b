"""Checks that look at several sections: each value may be right, and together they contradict.

A check of one section stands in that section's file. Each raises ValueError with one line: key, value, expectation and
remedy. tree.py calls them.
"""

from .bridge import BridgeSettings
from .data import CacheSettings, DataSettings
from .encoders import VAE_DOWNSAMPLING, TextSettings
from .model import ModelSettings, VideoModelSettings
from .sample import SampleSettings
from .train import TrainSettings


def check_patches(key: str, model: ModelSettings, data: DataSettings) -> None:
    """Latents divide into the model's patches; `key` is the dotted name of the model's section."""
    for side, latent in zip(("height", "width"), data.latent_size, strict=True):
        if latent % model.patch_size:
            raise ValueError(
                f"{key}.patch_size = {model.patch_size} does not divide the latent {side} {getattr(data, side)} / "
                f"{VAE_DOWNSAMPLING} = {latent}; choose another data.{side} or patch size"
            )


def check_online(cache: CacheSettings, bridge: BridgeSettings, sample: SampleSettings, text: TextSettings) -> None:
    """Nothing asks for a cache while data.online trains without one."""
    for key, contradicts, remedy in (
        ("cache.mix", bool(cache.mix), "set it []"),
        ("bridge.cached_prior", bridge.cached_prior, "set it false"),
        ("sample.while_training", sample.while_training is not None, "set it null"),
        ("text.path", text.is_used, "cache the captions' embeddings with jobs/cache_latents.py"),
    ):
        if contradicts:
            raise ValueError(
                f"data.online = true trains without a cache, which {key} needs; {remedy}, or data.online false"
            )


def check_process(bridge: BridgeSettings, model: VideoModelSettings, train: TrainSettings, text: TextSettings) -> None:
    """The network is shown what the process needs, and starts from weights that SAF can align to."""
    if bridge.time_noise is not None and model.image_condition == "none":
        raise ValueError(
            "bridge.time_noise disturbs the image, which model.image_condition none does not show; set null"
        )
    if bridge.saf and bridge.process == "diffusion":
        raise ValueError("bridge.saf = true aligns a bridge; with bridge.process = diffusion set bridge.saf false")
    if bridge.saf and train.init is None:
        raise ValueError(
            "bridge.saf = true aligns the bridge to a pre-trained diffusion model, but train.init is null; "
            "set train.init (for example shipped:teacher), or bridge.saf false to train from scratch"
        )
    if model.takes_text and not text.is_used:
        raise ValueError(
            f"model.backbone = {model.backbone} is conditioned on text; set text.path to its encoder, or "
            "model.backbone latte"
        )
    if bridge.process == "bridge" and model.image_condition == "none":
        raise ValueError("model.image_condition = none leaves a bridge without its image; set frame")
