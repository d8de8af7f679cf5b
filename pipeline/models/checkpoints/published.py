"""Read published checkpoints, whatever wraps their weights, without unpickling code."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .weights import State, WeightsError, load_safetensors

# in order of preference: published models are sampled with averaged weights
WRAPPERS = ("ema", "model", "state_dict", "module")
# from distributed training, and from the neural prior in the authors' checkpoints
PREFIXES = ("module.", "nwarp_model.")


def load_published(path: str | Path) -> State:
    """Read a published checkpoint: safetensors, or a torch file read with weights_only=True.

    Prefers averaged weights if the file has several kinds ('ema' before 'model', 'state_dict' and DeepSpeed's
    'module'), and strips a wrapper's prefix (PREFIXES) if all names share it. Raises WeightsError on anything else;
    never unpickles code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _without_prefix(load_safetensors(path))
    if not path.is_file():
        raise WeightsError(f"{path} is missing: give the path of a downloaded checkpoint or of an export")
    try:
        # trainers of the DiT family keep their argparse.Namespace beside the weights; it is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped, not read: a caller may want only the VAE in a whole text-to-video model
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path} is not plain weights ({reason}): if you trust it, convert it to safetensors"
        ) from error
    loaded = loaded if isinstance(loaded, Mapping) else {}
    loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors, at its top level or under {', '.join(WRAPPERS)}; give a state dict"
        )
    return _without_prefix(tensors)


def _without_prefix(state: State) -> State:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
