"""Choose the trained weights: all, those that train.trainable names, or low-rank adapters on frozen ones (train.lora).

LoRA (Hu et al. 2021, eq. 3): a frozen matrix W acts as W + (alpha / rank) B A, and A and B are trained. An export holds
the sum, so nothing after training needs to know about adapters.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..settings import LoraSettings, TrainSettings

# modules that get adapters unless train.lora.targets says otherwise: attention, as the LoRA paper has it
TARGETS = {
    "latte": [r"\.attn\.(qkv|proj)$"],
    "unet3d": [r"\.to_(q|k|v|k_ip|v_ip)$", r"\.to_out\.0$"],
    "cogvideox": [r"\.to_(q|k|v)$", r"\.to_out\.0$"],
}
# weights that are trained beside adapters unless train.trainable says otherwise: those that read the image latent, and
# are zero in a text-to-video model. Latte sees the image as a frame, through weights that it has.
BESIDE = {"latte": [], "unet3d": [r"input_blocks\.0\.0\."], "cogvideox": [r"^patch_embed\.proj\."]}
BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names


def choose_trained(key: str, network: nn.Module, backbone: str, train: TrainSettings, seed: int) -> None:
    """Freeze the weights of `network` that are not trained, and insert adapters.

    `network` is a `backbone` with its initial weights; `key` names the section `train` in messages. Adapters start at
    B = 0, and A is drawn from `seed` alone. Raises UserError for a pattern that nothing matches.
    """
    rank, patterns = train.lora.rank, train.trainable
    if patterns is None and rank is None:
        return
    if patterns is None:
        patterns = BESIDE[backbone]
    kept = _matching(f"{key}.trainable", patterns, (name for name, _ in network.named_parameters()))
    network.requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in kept)
    if rank is None:
        return
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets = _matching(f"{key}.lora.targets", train.lora.targets or TARGETS[backbone], linear)
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=train.lora.alpha, target_modules=targets), network)
    for name, parameter in network.named_parameters():  # peft froze them
        if name.replace(BASE, ".") in kept:
            parameter.requires_grad_(True)


def _matching(key: str, patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that one of the regular expressions matches. Raises UserError for an expression that matches none."""
    names = list(names)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"{key} = {pattern}: found in no name, such as {names[len(names) // 2]}; correct it")
    return [name for name in names if any(re.search(pattern, name) for pattern in patterns)]


def merged(state: Mapping[str, Tensor], lora: LoraSettings) -> dict[str, Tensor]:
    """Merge adapters into the weights: same output, and the names of the network without adapters."""
    if lora.rank is None:
        return dict(state)
    result = {name.replace(BASE, "."): value for name, value in state.items() if not name.endswith((DOWN, UP))}
    for name in state:
        if name.endswith(DOWN):
            module = name.removesuffix(DOWN)
            update = state[f"{module}{UP}"].float() @ state[name].float()
            weight = result[f"{module}.weight"]
            result[f"{module}.weight"] = (weight.float() + lora.alpha / lora.rank * update).to(weight.dtype)
    return result
