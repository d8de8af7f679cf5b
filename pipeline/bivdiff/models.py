"""Folders -> the models of a run, loaded from this machine's disk and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import UserError
from ..models.checkpoints.exports import is_export
from ..models.files.paths import local_path, shipped_path
from ..models.files.vae import vae_identity
from ..models.vae import DTYPES, Vae
from ..sampling.exports import Exports, check_text, check_vae, find_exports
from ..sampling.generate import load_for_sampling
from ..settings import VAE_DOWNSAMPLING, Settings
from ..settings.bivdiff import JOINT, BivdiffSettings
from ..storage.files import exists
from .adapters import image_diffusion, own_diffusion, vae_of, video_diffusion
from .diffusion import LatentDiffusion
from .mixed import check_one_space, check_one_trajectory
from .tasks import PIPELINES

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"  # what makes a folder a pipeline of diffusers
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
ADAPTERS = {"controlnet": "ControlNetModel", "t2i_adapter": "T2IAdapter"}


class Models(NamedTuple):
    """What the task and the framework need; None: they need it not."""

    pipe: DiffusionPipeline | None  # makes the frames
    image: LatentDiffusion | None  # inverts frames
    video: LatentDiffusion | None
    vae: Vae | None  # of the video model
    channels: int  # of their latents
    device: torch.device


def check_models(settings: Settings) -> None:
    """Raise UserError for a model that is not there or not whole, in one line, without loading any."""
    for key, path in used_models(settings.bivdiff).items():
        if key == "adapter":
            check_part(key, folder_of(key, path))
        elif key == "video_model" and is_own(path):
            check_own(path, settings)
        else:
            check_pipeline(key, path)


def used_models(bivdiff: BivdiffSettings) -> dict[str, str]:
    """{key: folder} of the models that the task and the framework take."""
    uses = {
        "image_model": bivdiff.framework != "vdm_only",
        "adapter": bivdiff.framework != "vdm_only" and bivdiff.task in ADAPTERS,
        "inversion_model": bivdiff.inverts_frames and bivdiff.inversion_model is not None,
        "video_model": bivdiff.framework != "idm_only",
    }
    return {key: str(getattr(bivdiff, key)) for key, is_used in uses.items() if is_used}


def check_own(path: str, settings: Settings) -> None:
    """Raise UserError unless an export of this project goes with the VAE, the text encoder and the clips of the settings."""
    exports = own_exports(settings)
    check_vae(exports, settings.vae.path, vae_identity(settings.vae.path)[0])
    check_text(exports, settings.text)
    frames, _, height, width = exports.latent_shape
    for key, found, wanted in (
        ("frames", settings.data.frames, frames),
        ("height", settings.data.height, VAE_DOWNSAMPLING * height),
        ("width", settings.data.width, VAE_DOWNSAMPLING * width),
    ):
        if found != wanted:
            raise UserError(f"data.{key} = {found}: bivdiff.video_model {path} makes clips of {wanted}; set that")


def is_own(path: str) -> bool:
    """Whether the video model is one of this project's, not diffusers'."""
    return is_export(shipped_path(path)) and not exists(f"{shipped_path(path)}/{INDEX}")


def own_exports(settings: Settings) -> Exports:
    """The video model as an export of this project. Raises UserError."""
    return find_exports(str(settings.bivdiff.video_model), settings.bridge, settings.run.folder)


def folder_of(key: str, path: str) -> Path:
    found = local_path(path)
    if found is None or not found.is_dir():
        raise UserError(
            f"bivdiff.{key} = {path}: no such folder on this machine; docs/bivdiff.md says which models to get"
        )
    return found


def check_pipeline(key: str, path: str) -> None:
    """Raise UserError unless the folder holds a pipeline with the weights of all its parts, as safetensors."""
    folder = folder_of(key, path)
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"bivdiff.{key} = {path}: no pipeline of diffusers there ({INDEX}: {error})") from error
    for name, kind in index.items():
        if isinstance(kind, list) and kind[1] and name not in UNUSED:
            part = folder / name
            if not part.is_dir():
                raise UserError(f"bivdiff.{key} = {path}: its {name}/ is missing; get it again")
            if kind[1].endswith("Model") or kind[1].startswith("Autoencoder"):
                check_part(key, part)


def parts_of(folder: Path) -> list[Path]:
    """The weights and configurations of a pipeline, or of one part of it."""
    inside = (
        [name for name in sorted(folder.glob("*/")) if name.name not in UNUSED]
        if (folder / INDEX).is_file()
        else [folder]
    )
    return [file for part in inside for file in sorted(part.iterdir()) if file.suffix in (".json", ".safetensors")]


def check_part(key: str, folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"bivdiff.{key}: no weights (*.safetensors) in {folder}; get them, pickles are not loaded")


def load_models(settings: Settings, device: str = "cpu") -> Models:
    """The models, on `device`. Raises UserError for files that are none, and for models that do not go together."""
    bivdiff = settings.bivdiff
    pipe = image = video = vae = None
    if bivdiff.framework != "vdm_only":
        pipe = load_task(bivdiff, device)
    if bivdiff.framework != "idm_only":
        video, vae = load_video(settings, device)
    if bivdiff.inverts_frames and video is not None and vae is not None:
        inverter = pipe
        if bivdiff.inversion_model is not None:
            inverter = load_pipeline(
                "inversion_model", "StableDiffusionPipeline", bivdiff.inversion_model, bivdiff, device
            )
        image = image_diffusion(inverter, str(bivdiff.inversion_model or bivdiff.image_model))
        check_one_space(image, vae_of(inverter), video, vae)
    if bivdiff.framework in JOINT and video is not None and vae is not None:
        shared = image_diffusion(pipe, str(bivdiff.image_model))
        check_one_space(shared, vae_of(pipe), video, vae)
        check_one_trajectory(shared, video, bivdiff.framework)
    if pipe is not None:
        channels = int(pipe.vae.config.latent_channels)
    else:
        assert video is not None
        channels = video.channels
    return Models(pipe, image, video, vae, channels, torch.device(device))


def load_task(bivdiff: BivdiffSettings, device: str) -> DiffusionPipeline:
    """The image pipeline of the task."""
    import diffusers

    kind, argument = PIPELINES[bivdiff.task]
    parts = {}
    if argument is not None:
        adapter = getattr(diffusers, ADAPTERS[bivdiff.task])
        parts[argument] = loaded("adapter", adapter, str(bivdiff.adapter), bivdiff)
    return load_pipeline("image_model", kind, str(bivdiff.image_model), bivdiff, device, **parts)


def load_video(settings: Settings, device: str) -> tuple[LatentDiffusion, Vae]:
    """The video model and its VAE."""
    path = str(settings.bivdiff.video_model)
    if is_own(path):
        sampler = load_for_sampling(own_exports(settings), settings.sample, settings.vae, settings.text, device)
        return own_diffusion(sampler), sampler.vae
    pipe = load_pipeline("video_model", "TextToVideoSDPipeline", path, settings.bivdiff, device)
    return video_diffusion(pipe, path), vae_of(pipe)


def load_pipeline(
    key: str, kind: str, path: str, bivdiff: BivdiffSettings, device: str, **parts: Any
) -> DiffusionPipeline:
    """A pipeline of diffusers, without safety checker: it blackens frames, and its judgement is of single pictures."""
    import diffusers

    if kind != "TextToVideoSDPipeline":
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    if kind in ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionInpaintPipeline"):
        parts["image_encoder"] = None
    return loaded(key, getattr(diffusers, kind), path, bivdiff, **parts).to(device)


def loaded(key: str, kind: Any, path: str, bivdiff: BivdiffSettings, **parts: Any) -> Any:
    """kind.from_pretrained of a folder of this machine. Raises UserError."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for bars in (diffusers_logging, transformers_logging):
        bars.disable_progress_bar()
    folder = folder_of(key, path)
    try:
        return kind.from_pretrained(
            folder, torch_dtype=DTYPES[bivdiff.dtype], use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"bivdiff.{key} = {path}: no {kind.__name__} could be loaded ({said}); docs/bivdiff.md says which models to get"
        ) from error
