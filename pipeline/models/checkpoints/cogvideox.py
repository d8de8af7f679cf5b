"""Published CogVideoX transformers to twice the input channels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from .weights import State, WeightsError, WeightsMismatch

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


PATCHES = "patch_embed.proj.weight"


WEIGHTS = "diffusion_pytorch_model*.safetensors"  # one file or several


def read_transformer(folder: str | Path) -> State:
    """Weights of a diffusers folder: that of a whole pipeline, or its transformer/. Raises WeightsError."""
    folder = Path(folder)
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        kind = json.loads((inner / "config.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{inner / 'config.json'} cannot be read ({error}): give a diffusers folder") from error
    if kind != "CogVideoXTransformer3DModel":
        raise WeightsError(f"{inner} holds a {kind}, expected a CogVideoXTransformer3DModel of diffusers")
    files = sorted(inner.glob(WEIGHTS))
    if not files:
        raise WeightsError(f"{inner} holds no {WEIGHTS}: get the folder again, as safetensors")
    state: State = {}
    for file in files:
        state |= load_file(file)
    return state


def widened(state: Mapping[str, Tensor], target: CogVideoXTransformer3DModel) -> State:
    """A text-to-video model's weights with the patch embedding widened by zeros to the target's input channels.

    So the image's channels change nothing at first. Raises WeightsMismatch where there is no patch embedding.
    """
    if PATCHES not in state:
        raise WeightsMismatch(f"{PATCHES} is missing: not the weights of a CogVideoX transformer")
    patches = state[PATCHES]
    extra = target.config.in_channels - patches.shape[1]
    if extra <= 0:
        return dict(state)
    zeros = patches.new_zeros(patches.shape[0], extra, *patches.shape[2:])
    return {**state, PATCHES: torch.cat([patches, zeros], dim=1)}
