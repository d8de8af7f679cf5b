"""Find and read the files of a VAE, in every layout in which Stable Diffusion's is published, and hash its weights.

A VAE comes as a diffusers folder (config.json beside diffusion_pytorch_model.*), with attention weights under today's
names or those from before 2023, or as a checkpoint file of latent diffusion (LDM, VideoCrafter), alone or as the
`first_stage_model` of a whole model. CogVideoX's VAE comes as a diffusers folder. The same weights have the same hash
in every layout. Imports torch only for files that need it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from ...settings import LATENT_CHANNELS
from .paths import CONFIG, hub_folder, local_path, model_config, naming

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
IMAGE_VAE, VIDEO_VAE = "AutoencoderKL", "AutoencoderKLCogVideoX"  # classes of diffusers
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # of an AutoencoderKL, in every layout
LDM_PREFIX = "first_stage_model."
LDM_NAME = re.compile(r"encoder\.down\.(\d+)\.")
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(attentions\.\d+)\.({'|'.join(OLD_ATTENTION)})\.")
SD_SCALING_FACTOR = 0.18215  # used if neither config.json nor the checkpoint has one
SD_GROUPS = 32  # in every group norm of latent diffusion; no tensor reveals it


@dataclass(frozen=True)
class VaeFiles:
    """Files of a VAE, and its diffusers configuration if it has one."""

    weights: Path
    config: dict[str, Any] | None  # None: derive it from the weights


def find_vae(path: str) -> VaeFiles:
    """Find the files of `vae.path`: shipped:NAME, a folder or file, or a hub name. Raises UserError."""
    local = local_path(path)
    with naming_vae(path):
        if local is not None and local.is_file():
            beside = local.with_name(CONFIG)
            return VaeFiles(local, _config(beside) if local.name in WEIGHTS_NAMES and beside.is_file() else None)
        for name in WEIGHTS_NAMES:
            folder = local or hub_folder(path, [CONFIG, name])
            if folder is not None and (folder / name).is_file() and (folder / CONFIG).is_file():
                return VaeFiles(folder / name, _config(folder / CONFIG))
        missing = f"no {CONFIG} with {' or '.join(WEIGHTS_NAMES)} there"
        raise ValueError(missing if local else "no such file or folder, nor on the hub")


def naming_vae(path: str) -> AbstractContextManager[None]:
    """Turn errors inside the block into a UserError that names `vae.path`."""
    checkpoint = "a latent diffusion checkpoint (.ckpt or .safetensors)"
    remedy = f"give a diffusers folder with {CONFIG} and {WEIGHTS_NAMES[0]}, {checkpoint}, a hub name, or shipped:vae"
    return naming("vae.path", path, IMAGE_VAE, remedy)


def _config(file: Path) -> dict[str, Any]:
    return model_config(file, "_class_name", (IMAGE_VAE, VIDEO_VAE), IMAGE_VAE)


def vae_geometry(path: str) -> tuple[int, int]:
    """Return the latent channels and the video frames per latent frame of `vae.path`. Raises UserError.

    CogVideoX's VAE encodes the first video frame alone: F frames become (F - 1) / 4 + 1 latent frames.
    """
    config = find_vae(path).config or {}
    if config.get("_class_name") == VIDEO_VAE:
        return int(config.get("latent_channels", 16)), int(config.get("temporal_compression_ratio", 4))
    return LATENT_CHANNELS, 1


def vae_identity(path: str) -> tuple[str, float]:
    """Return the hash of the weights and the scaling factor of `vae.path`. Raises UserError."""
    files = find_vae(path)
    status = files.weights.stat()
    with naming_vae(path):
        digest, scaling_factor = _identity(files.weights, status.st_mtime_ns, status.st_size)
    return digest, float((files.config or {}).get("scaling_factor", scaling_factor))


@lru_cache(maxsize=8)
def _identity(weights: Path, changed_ns: int, size: int) -> tuple[str, float]:
    arrays = _diffusers_arrays(weights) if weights.suffix == ".safetensors" else None
    if arrays is not None:
        return hash_arrays(arrays), SD_SCALING_FACTOR
    state, scaling_factor = read_state(weights)
    return hash_arrays({name: tensor.float().numpy() for name, tensor in state.items()}), scaling_factor


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash names, shapes and float32 values by SHA-256, sorted by name: the hash is the same in every file format."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _diffusers_arrays(file: Path) -> dict[str, np.ndarray] | None:
    """Read a safetensors file lazily, under today's diffusers names; return None if the names in it are others."""
    with safe_open(file, framework="numpy") as opened:  # checks the file
        names = list(opened.keys())
    if any(LDM_NAME.search(name) for name in names):
        return None
    content = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    arrays = {}
    for name in (name for name in names if name.startswith(VAE_PARTS)):
        first, last = header[name]["data_offsets"]
        values = _float_view(content[start + first : start + last], header[name]["dtype"])
        arrays[canonical_name(name)] = values.reshape(canonical_shape(name, header[name]["shape"]))
    return arrays or None


def _float_view(content: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # numpy lacks it; it is the upper half of a float32
        return (content.view("<u2").astype("<u4") << 16).view("<f4")
    return content.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])


def canonical_name(name: str) -> str:
    """Return a diffusers name with today's names of attention weights."""
    return OLD_NAME.sub(lambda match: f"{match[1]}.{OLD_ATTENTION[match[2]]}.", name)


def canonical_shape(name: str, shape: list[int]) -> list[int]:
    """Return a tensor's shape in diffusers, where attention projections are matrices; in LDM they are 1 x 1 kernels."""
    is_projection = "attentions." in name and name.endswith(".weight") and len(shape) == 4
    return shape[:2] if is_projection else shape


def read_state(weights: Path) -> "tuple[dict[str, Tensor], float]":
    """Read the tensors, under today's diffusers names, and the scaling factor in the file.

    Raises WeightsError, or ValueError for a file without a VAE.
    """
    from ..checkpoints.published import load_published

    loaded = load_published(weights)
    scale = loaded.get("scale_factor")
    state = to_diffusers(loaded)
    if not state:
        raise ValueError(f"{weights} holds no tensors named {' or '.join(VAE_PARTS)}...")
    return state, SD_SCALING_FACTOR if scale is None else float(scale)


def to_diffusers(loaded: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Pick the VAE's tensors from a checkpoint in any layout, under today's diffusers names; {} if there is none."""
    whole = any(name.startswith(LDM_PREFIX) for name in loaded)
    found = {name.removeprefix(LDM_PREFIX): loaded[name] for name in loaded if name.startswith(LDM_PREFIX) or not whole}
    state = {name: tensor for name, tensor in found.items() if name.startswith(VAE_PARTS)}
    if levels := {match[1] for name in state if (match := LDM_NAME.match(name))}:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        blocks = [None] * len(levels)  # the converter reads only their number
        state = convert_ldm_vae_checkpoint(state, {"down_block_types": blocks, "up_block_types": blocks})
    return {
        canonical_name(name): tensor.reshape(canonical_shape(name, list(tensor.shape)))
        for name, tensor in state.items()
    }


def derive_config(state: "Mapping[str, Tensor]") -> dict[str, Any]:
    """Derive AutoencoderKL's configuration from weights under diffusers' names, with Stable Diffusion's group norms."""
    first = re.compile(r"encoder\.down_blocks\.\d\.resnets\.0\.conv1\.weight")
    widths = [state[name].shape[0] for name in sorted(state) if first.fullmatch(name)]
    resnets = {name.split(".")[4] for name in state if name.startswith("encoder.down_blocks.0.resnets.")}
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": len(resnets),
        "norm_num_groups": SD_GROUPS,
    }
