"""Networks of a few weights."""

from typing import Any, TypeVar

import torch
from torch import nn

LATTE: dict[str, Any] = dict(
    input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=2, num_heads=2, num_frames=3, num_classes=5
)
Module = TypeVar("Module", bound=nn.Module)


def randomise(module: Module, seed: int = 0, std: float = 0.1) -> Module:
    """The module, with random weights everywhere: as they are initialised, these networks predict zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module
