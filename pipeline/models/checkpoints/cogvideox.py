"""Read published CogVideoX transformers and widen them to twice the input channels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...storage.files import read_json
from .exports import CONFIG_FILE
from .weights import State, WeightsError, WeightsMismatch, load_safetensors, widen_inputs

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel

PATCHES = "patch_embed.proj.weight"
TRANSFORMER_WEIGHTS = "diffusion_pytorch_model*.safetensors"  # one file or several


def read_transformer(folder: str | Path) -> State:
    """Read the weights of a diffusers pipeline's folder, or of its transformer/. Raises WeightsError."""
    folder = Path(folder)
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        kind = read_json(str(inner / CONFIG_FILE)).get("_class_name")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{inner / CONFIG_FILE} cannot be read ({error}): give a diffusers folder") from error
    if kind != "CogVideoXTransformer3DModel":
        raise WeightsError(f"{inner} holds a {kind}, expected a CogVideoXTransformer3DModel of diffusers")
    files = sorted(inner.glob(TRANSFORMER_WEIGHTS))
    if not files:
        raise WeightsError(f"{inner} holds no {TRANSFORMER_WEIGHTS}: get the folder again, as safetensors")
    return {name: value for file in files for name, value in load_safetensors(file).items()}


def widened(state: Mapping[str, Tensor], target: "CogVideoXTransformer3DModel") -> State:
    """Widen the patch embedding of a text-to-video model by zeros to the target's input channels.

    The image's channels therefore change nothing at first. Raises WeightsMismatch without a patch embedding.
    """
    if PATCHES not in state:
        raise WeightsMismatch(f"{PATCHES} is missing: not the weights of a CogVideoX transformer")
    return {**state, PATCHES: widen_inputs(state[PATCHES], target.config.in_channels)}
