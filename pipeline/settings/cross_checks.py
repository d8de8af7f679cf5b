"""Checks that look at several sections: each value may be right, and together they contradict.

A check of one section stands in that section's file. Each raises ValueError with one line: key, value, expectation and
remedy.
"""

from typing import TYPE_CHECKING

from .encoders import VAE_DOWNSAMPLING

if TYPE_CHECKING:
    from .tree import Settings


def check_combinations(settings: "Settings") -> None:
    """Raise ValueError at the first combination of sections that cannot be."""
    _check_patches(settings)
    most_workers, gpus = settings.cluster.train.workers_range[1], settings.cluster.train.num_gpus
    settings.train.check("train", most_workers, gpus)
    settings.prior.train.check("prior.train", most_workers, gpus)
    if settings.data.online:
        _check_online(settings)
    _check_process(settings)


def without_effect_across(settings: "Settings") -> dict[str, str]:
    """Dotted names of settings that do nothing beside those of other sections, each with the cause and the remedy."""
    found = {}
    bridge, model, sample = settings.bridge, settings.model, settings.sample
    if not settings.uses_neural_prior:
        if bridge.prior == "neural":
            found["bridge.prior"] = (
                "with bridge.process = diffusion and model.prior_condition = false; set it replicated, or "
                "model.prior_condition true"
            )
        if bridge.cached_prior:
            found["bridge.cached_prior"] = (
                f"with bridge.process = {bridge.process} and bridge.prior = {bridge.prior}; set it false, or "
                "bridge.prior neural, or model.prior_condition true"
            )
    of_own_model = sample.model_path is None and settings.bivdiff.items is None
    if of_own_model and not model.takes_stride:
        found["sample.stride"] = f"with model.backbone = {model.backbone}, which is not told the stride; leave it out"
    return found


def _check_patches(settings: "Settings") -> None:
    for key, model in (("model", settings.model), ("prior.model", settings.prior.model)):
        for side, latent in zip(("height", "width"), settings.data.latent_size, strict=True):
            if latent % model.patch_size:
                raise ValueError(
                    f"{key}.patch_size = {model.patch_size} does not divide the latent {side} "
                    f"{getattr(settings.data, side)} / {VAE_DOWNSAMPLING} = {latent}; choose another data.{side} or "
                    "patch size"
                )


def _check_online(settings: "Settings") -> None:
    for key, contradicts, remedy in (
        ("cache.mix", bool(settings.cache.mix), "set it []"),
        ("bridge.cached_prior", settings.bridge.cached_prior, "set it false"),
        ("sample.while_training", settings.sample.while_training is not None, "set it null"),
        ("text.path", settings.text.is_used, "cache the captions' embeddings with jobs/cache_latents.py"),
    ):
        if contradicts:
            raise ValueError(
                f"data.online = true trains without a cache, which {key} needs; {remedy}, or data.online false"
            )


def _check_process(settings: "Settings") -> None:
    bridge, model = settings.bridge, settings.model
    if bridge.time_noise is not None and model.image_condition == "none":
        raise ValueError(
            "bridge.time_noise disturbs the image, which model.image_condition none does not show; set null"
        )
    if bridge.saf and bridge.process == "diffusion":
        raise ValueError("bridge.saf = true aligns a bridge; with bridge.process = diffusion set bridge.saf false")
    if bridge.saf and settings.train.init is None:
        raise ValueError(
            "bridge.saf = true aligns the bridge to a pre-trained diffusion model, but train.init is null; "
            "set train.init (for example shipped:teacher), or bridge.saf false to train from scratch"
        )
    if model.takes_text and not settings.text.is_used:
        raise ValueError(
            f"model.backbone = {model.backbone} is conditioned on text; set text.path to its encoder, or "
            "model.backbone latte"
        )
    if bridge.process == "bridge" and model.image_condition == "none":
        raise ValueError("model.image_condition = none leaves a bridge without its image; set frame")
