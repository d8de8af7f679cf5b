"""Combinations of settings that are refused: each value may be right, and together they contradict.

Each function raises ValueError with one line of key, value, expectation and remedy. A new check of a section goes into
that section's function, one that looks at several sections into check_combinations.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import (
        AblateSettings,
        BridgeSettings,
        ModelSettings,
        SampleSettings,
        Settings,
        TrainSettings,
        UNet3DSettings,
        VideoModelSettings,
    )

VAE_DOWNSAMPLING = 8


def check_dimensions(model: "ModelSettings") -> None:
    """A Latte's size is a name or its numbers."""
    given = {"hidden_size": model.hidden_size, "depth": model.depth, "num_heads": model.num_heads}
    named = [k for k, v in given.items() if v is not None]
    if model.size is not None and named:
        raise ValueError(
            f"model.size = {model.size} already fixes {', '.join(named)}; set model.size null to choose them"
        )
    if model.size is None:
        missing = [k for k, v in given.items() if v is None]
        if missing:
            raise ValueError(f"model.size is null, so {', '.join('model.' + k for k in missing)} must be set")
        assert model.hidden_size and model.num_heads and model.depth
        if model.hidden_size % model.num_heads:
            raise ValueError(
                f"model.hidden_size = {model.hidden_size} does not divide into model.num_heads = {model.num_heads}"
            )
        if model.depth % 2:
            raise ValueError(
                f"model.depth = {model.depth} is odd, but spatial and temporal blocks come in pairs; use {model.depth + 1}"
            )


def check_widths(unet: "UNet3DSettings") -> None:
    """The U-Net's channels divide as its layers divide them."""
    for name, divisor in (
        ("its group norms' 32", 32),
        (f"model.unet3d.head_size = {unet.head_size}", unet.head_size),
    ):
        if unet.model_channels % divisor:
            raise ValueError(f"model.unet3d.model_channels = {unet.model_channels} is no multiple of {name}")


def check_conditions(model: "VideoModelSettings") -> None:
    """A backbone and the way it is shown the image."""
    wanted = ("frame", "none") if model.backbone == "latte" else ("channels",)
    if model.image_condition not in wanted:
        raise ValueError(
            f"model.image_condition = {model.image_condition}: model.backbone = {model.backbone} takes {' or '.join(wanted)}"
        )
    if model.backbone != "latte" and getattr(model, model.backbone) is None:
        raise ValueError(f"model.{model.backbone} = null: model.backbone = {model.backbone} needs its sizes there")
    if model.prior_condition and model.backbone != "latte":
        raise ValueError("model.prior_condition = true is Latte's; set it false, or model.backbone latte")


def check_schedules(bridge: "BridgeSettings") -> None:
    """The bridge, and the diffusion model that it is tuned from."""
    if bridge.beta0 > bridge.beta1:
        raise ValueError(
            f"bridge.beta0 = {bridge.beta0} exceeds bridge.beta1 = {bridge.beta1}; noise must grow with time"
        )
    if not 0 < bridge.pretrained_beta_start <= bridge.pretrained_beta_end:
        raise ValueError(
            f"bridge.pretrained_beta_start = {bridge.pretrained_beta_start}: expected above 0 and at most "
            f"pretrained_beta_end = {bridge.pretrained_beta_end}"
        )
    if bridge.process == "diffusion" and bridge.loss_weight != "uniform":
        raise ValueError(f"bridge.loss_weight = {bridge.loss_weight} is of bridges; with process diffusion set uniform")
    if bridge.process == "diffusion" and bridge.pretrained_zero_terminal_snr and bridge.target == "noise":
        raise ValueError(
            "bridge.pretrained_zero_terminal_snr = true: at its last step a noise-predicting diffusion model says "
            "nothing of the clip; set bridge.target v or z0"
        )


def check_sampler(sample: "SampleSettings") -> None:
    """What each sampler can be told."""
    if sample.order > 1 and (sample.sampler != "dbim" or sample.eta > 0):
        raise ValueError(
            f"sample.order = {sample.order} is dbim's, with sample.eta 0; set sample.order 1 or sample.sampler dbim"
        )
    if sample.eta > 0 and sample.sampler not in ("auto", "dbim", "ddim"):
        raise ValueError(f"sample.eta = {sample.eta} is of dbim and ddim, not {sample.sampler}; set sample.eta 0")


def check_held_out(ablate: "AblateSettings") -> None:
    """Of the ablation's videos some are left to train on, and its samplers are measured on some of the held-out ones."""
    if 2 * ablate.clips > ablate.videos:
        raise ValueError(
            f"ablate.clips = {ablate.clips} of ablate.videos = {ablate.videos} would be held out; half is the most"
        )
    if ablate.sampler_clips > ablate.clips:
        raise ValueError(
            f"ablate.sampler_clips = {ablate.sampler_clips} exceeds ablate.clips = {ablate.clips}; lower it"
        )


def check_combinations(settings: "Settings") -> None:
    """What spans sections."""
    for key, model in (("model", settings.model), ("prior.model", settings.prior.model)):
        for side in ("height", "width"):
            latent = getattr(settings.data, side) // VAE_DOWNSAMPLING
            if latent % model.patch_size:
                raise ValueError(
                    f"{key}.patch_size = {model.patch_size} does not divide the latent {side} "
                    f"{getattr(settings.data, side)} / {VAE_DOWNSAMPLING} = {latent}; choose another data.{side} or patch size"
                )
    for key, train in (("train", settings.train), ("prior.train", settings.prior.train)):
        _check_batch(key, train, settings.cluster.train.workers_range[1])
        _check_engine(key, train, settings.cluster.train.num_gpus)
    if settings.data.online:
        _check_online(settings)
    if settings.bridge.time_noise is not None and settings.model.image_condition == "none":
        raise ValueError(
            "bridge.time_noise disturbs the image, which model.image_condition none does not show; set null"
        )
    if settings.bridge.saf and settings.bridge.process == "diffusion":
        raise ValueError("bridge.saf = true aligns a bridge; with bridge.process = diffusion set bridge.saf false")
    if settings.bridge.saf and settings.train.init is None:
        raise ValueError(
            "bridge.saf = true aligns the bridge to a pre-trained diffusion model, but train.init is null; "
            "set train.init (for example shipped:teacher), or bridge.saf false to train from scratch"
        )
    if settings.model.backbone != "latte" and settings.text.path is None:
        raise ValueError(
            f"model.backbone = {settings.model.backbone} is conditioned on text; set text.path to its encoder, or "
            "model.backbone latte"
        )
    if settings.bridge.process == "bridge" and settings.model.image_condition == "none":
        raise ValueError("model.image_condition = none leaves a bridge without its image; set frame")


def _check_batch(key: str, train: "TrainSettings", workers: int) -> None:
    if train.global_batch < workers:
        raise ValueError(
            f"{key}.global_batch = {train.global_batch} leaves some of cluster.train.workers = {workers} without a clip; "
            f"use at least {workers}, or fewer workers"
        )
    if train.optimizer == "muon" and train.zero_stage:
        raise ValueError(
            f"{key}.optimizer = muon with {key}.zero_stage = {train.zero_stage}: ZeRO cuts the matrices that Muon takes "
            f"whole; set {key}.zero_stage 0, or {key}.optimizer adamw"
        )
    if train.warmup_steps > train.steps:
        raise ValueError(f"{key}.warmup_steps = {train.warmup_steps} exceeds {key}.steps = {train.steps}")


def _check_online(settings: "Settings") -> None:
    for key, contradicts, remedy in (
        ("cache.mix", bool(settings.cache.mix), "set it []"),
        ("bridge.cached_prior", settings.bridge.cached_prior, "set it false"),
        ("sample.while_training", settings.sample.while_training is not None, "set it null"),
        ("text.path", settings.text.path is not None, "cache the captions' embeddings with jobs/cache_latents.py"),
    ):
        if contradicts:
            raise ValueError(
                f"data.online = true trains without a cache, which {key} needs; {remedy}, or data.online false"
            )


def _check_engine(key: str, train: "TrainSettings", gpus: float) -> None:
    if train.offload_optimizer and not train.zero_stage:
        raise ValueError(
            f"{key}.offload_optimizer = true with {key}.zero_stage = 0: ZeRO is what keeps the optimizer apart; set "
            f"{key}.zero_stage 1, 2 or 3"
        )
    if train.offload_optimizer and not gpus:
        raise ValueError(
            f"{key}.offload_optimizer = true with cluster.train.num_gpus = 0: its state is in the CPU's memory already; "
            f"set {key}.offload_optimizer false"
        )
    if train.lora.rank is not None and train.init is None:
        raise ValueError(
            f"{key}.lora.rank = {train.lora.rank} trains adapters beside pre-trained weights, but {key}.init is null; set "
            f"{key}.init, or {key}.lora.rank null"
        )
