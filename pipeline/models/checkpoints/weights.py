"""Read weights from disk and load them strictly, without unpickling code."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import UserError

State = dict[str, Tensor]


class WeightsError(UserError):
    """Weights that cannot be read; the message names the path and the remedy."""


class WeightsMismatch(WeightsError):
    """Weights that belong to another model."""


def load_safetensors(path: Path) -> State:
    """Read one safetensors file. Raises WeightsError if it is missing or damaged."""
    if not path.is_file():
        raise WeightsError(f"{path} is missing: give the path of a downloaded checkpoint or of an export")
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}): get or export it again") from error
    return state


def load_strict(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state`, called `name` in messages, into the module. Raises WeightsMismatch unless it fits exactly."""
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    report = "; ".join(
        f"{len(found)} {what} ({first_few(found)})"
        for found, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "mis-shaped"))
        if found
    )
    if report:
        raise WeightsMismatch(
            f"{name} does not fit the model of {len(own)} tensors: {report}. "
            "Build the model with the settings that these weights were made with, or give other weights"
        )
    module.load_state_dict(dict(state))


def widen_inputs(kernel: Tensor, channels: int) -> Tensor:
    """Append zeros to a kernel up to `channels` input channels; the new channels change nothing at first."""
    extra = max(channels - kernel.shape[1], 0)
    return torch.cat([kernel, kernel.new_zeros(kernel.shape[0], extra, *kernel.shape[2:])], dim=1)


def first_few(found: list[str], limit: int = 3) -> str:
    """Join the first names by commas; dots show that there are more."""
    return ", ".join(found[:limit]) + (", ..." if len(found) > limit else "")
