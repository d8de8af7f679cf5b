"""Folders -> the models of a run, loaded from this machine's disk and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers

from ..errors import UserError
from ..models.checkpoints.exports import is_export
from ..models.checkpoints.weights_hash import folder_hash
from ..models.files.paths import local_path, shipped_path
from ..models.files.vae import vae_identity
from ..models.vae import DTYPES
from ..sampling.exports import Exports, check_encoders, find_exports
from ..sampling.generate import load_for_sampling
from ..settings import VAE_DOWNSAMPLING, BridgeSettings, DataSettings, Settings, TextSettings, VaeSettings
from ..settings.bivdiff import JOINT, BivdiffSettings
from ..storage.files import exists
from .diffusion import LatentDiffusion, image_diffusion, own_diffusion, video_diffusion
from .mixed import check_one_space, check_one_trajectory
from .tasks import ADAPTERS, PIPELINES

INDEX = "model_index.json"  # makes a folder a pipeline of diffusers
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class Models(NamedTuple):
    """The models that this task and framework use; unused ones are None."""

    pipe: diffusers.DiffusionPipeline | None  # makes the frames
    first: LatentDiffusion  # the model that starts from noise: that of `pipe`, or without one the video model
    image: LatentDiffusion | None  # inverts frames
    video: LatentDiffusion | None


def own_exports(bivdiff: BivdiffSettings, bridge: BridgeSettings, run_folder: str) -> Exports | None:
    """Find the video model as an export of this project; None without a video model of ours. Raises UserError."""
    path = bivdiff.used_models.get("video_model")
    if path is None or exists(f"{shipped_path(path)}/{INDEX}") or not is_export(shipped_path(path)):
        return None
    return find_exports(path, bridge, run_folder)


def check_models(bivdiff: BivdiffSettings, own: Exports | None) -> None:
    """Raise UserError for a model of diffusers that is not there or not whole, in one line, without loading any."""
    for key, path in bivdiff.used_models.items():
        if key == "adapter":
            check_part(key, folder_of(key, path))
        elif key != "video_model" or own is None:
            check_pipeline(key, path)


def check_own(own: Exports, vae: VaeSettings, text: TextSettings, data: DataSettings) -> None:
    """Raise UserError unless the VAE, the text encoder and the clips of the settings fit our own video model."""
    check_encoders(own, vae.path, vae_identity(vae.path)[0], text)
    frames, _, height, width = own.latent_shape
    wanted = {"frames": frames, "height": VAE_DOWNSAMPLING * height, "width": VAE_DOWNSAMPLING * width}
    for key, value in wanted.items():
        if (given := getattr(data, key)) != value:
            raise UserError(f"data.{key} = {given}: bivdiff.video_model {own.model_path} has clips of {value}; set it")


def folder_of(key: str, path: str) -> Path:
    """The folder of a model on this machine. Raises UserError."""
    found = local_path(path)
    if found is None or not found.is_dir():
        raise UserError(f"bivdiff.{key} = {path}: no such folder here; docs/bivdiff.md says which models to get")
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


def check_part(key: str, folder: Path) -> None:
    """Raise UserError unless the folder of one network has weights."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"bivdiff.{key}: no weights (*.safetensors) in {folder}; get them, pickles are not loaded")


def pipeline_hash(path: str) -> str:
    """BLAKE2b of the weights and configurations of a pipeline, or of one part of it."""
    folder = Path(path).expanduser()
    inside = [folder]
    if (folder / INDEX).is_file():
        inside = [part for part in sorted(folder.glob("*/")) if part.name not in UNUSED]
    files = [file for part in inside for file in sorted(part.iterdir())]
    return folder_hash(folder, [file for file in files if file.suffix in (".json", ".safetensors")])


def load_models(settings: Settings, device: str = "cpu") -> Models:
    """Load the models. Raises UserError for files that cannot be loaded, and models that do not go together."""
    bivdiff = settings.bivdiff
    pipe = image = video = None
    if bivdiff.framework != "vdm_only":
        parts = {}
        if bivdiff.task in ADAPTERS:
            argument, kind = ADAPTERS[bivdiff.task]
            parts[argument] = load_pipeline("adapter", kind, bivdiff, device)
        pipe = load_pipeline("image_model", PIPELINES[bivdiff.task], bivdiff, device, **parts)
        image = image_diffusion(pipe, str(bivdiff.image_model))
    own = own_exports(bivdiff, settings.bridge, settings.run.folder)
    if own is not None:
        video = own_diffusion(load_for_sampling(own, settings.sample, settings.vae, settings.text, device))
    elif bivdiff.framework != "idm_only":
        video_pipe = load_pipeline("video_model", "TextToVideoSDPipeline", bivdiff, device)
        video = video_diffusion(video_pipe, str(bivdiff.video_model))
    first = image or video
    assert first is not None
    if "inversion_model" in bivdiff.used_models:
        inverter = load_pipeline("inversion_model", "StableDiffusionPipeline", bivdiff, device)
        image = image_diffusion(inverter, str(bivdiff.inversion_model))
    if image is not None and video is not None and (bivdiff.inverts_frames or bivdiff.framework in JOINT):
        check_one_space(image, video)
        if bivdiff.framework in JOINT:
            check_one_trajectory(image, video, bivdiff.framework)
    return Models(pipe, first, image, video)


def load_pipeline(
    key: str, kind: str, bivdiff: BivdiffSettings, device: str, **parts: Any
) -> diffusers.DiffusionPipeline:
    """Load the class `kind` of diffusers, a pipeline or one part, from the folder bivdiff.`key`. Raises UserError.

    A pipeline comes without its safety checker, which blackens frames by judging single pictures.
    """
    from transformers.utils import logging as transformers_logging

    for bars in (diffusers.utils.logging, transformers_logging):
        bars.disable_progress_bar()
    if kind.startswith("StableDiffusion"):
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    if kind in ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionInpaintPipeline"):
        parts["image_encoder"] = None
    path, dtype = str(getattr(bivdiff, key)), DTYPES[bivdiff.dtype]
    folder = folder_of(key, path)
    try:
        loaded = getattr(diffusers, kind).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"bivdiff.{key} = {path}: no {kind} could be loaded ({said}); docs/bivdiff.md names models"
        ) from error
    return loaded.to(device)
