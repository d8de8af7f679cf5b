"""An engine's weights and optimizer state as whole float32 tensors by parameter name, under every ZeRO stage.

A state gathered under one ZeRO stage and number of workers is restored under any other, bit for bit. DeepSpeed's own
checkpoints are pickles, bound to the number of workers that wrote them.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .engine import SCALAR
from .internals import base_optimizer, link_optimizer_state, partitioned_masters, rounded_and_masters

WEIGHT, EMA = "weight", "ema"


def optimizer_keys(train_optimizer: str) -> tuple[str, ...]:
    """Names of the tensors that the optimizer keeps for each parameter."""
    return ("average", "mean", "square") if train_optimizer == "muon" else ("exp_avg", "exp_avg_sq")


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of the trained parameters, in the module's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def gather(engine: Any, keys: Iterable[str], rank: int, workers: int) -> dict[str, Tensor]:
    """This rank's share of all trained parameters: {"PARAMETER/weight": ..., "PARAMETER/KEY": ...} on the CPU.

    Collective: every rank calls it. Only one parameter is whole at a time.
    """
    found: dict[str, Tensor] = {}
    if engine.zero_optimization_stage() in (1, 2):
        # DeepSpeed links weights to their state after the first step of the first group; later groups have none then
        link_optimizer_state(engine)
    for index, (name, parameter) in enumerate(trained(engine.module)):
        for key in (WEIGHT, *keys):
            value = whole(engine, parameter, key)
            if value is not None and index % workers == rank:
                found[f"{name}/{key}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return found


def whole(engine: Any, parameter: nn.Parameter, key: str) -> Tensor | None:
    """A parameter's master weight or optimizer state, float32 in its shape; None if the optimizer keeps none."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not engine.zero_optimization_stage():
        master = unpartitioned(engine)[parameter]
        return master if key == WEIGHT else engine.optimizer.state[master].get(key)
    if key == WEIGHT:
        value = safe_get_full_fp32_param(parameter)
        assert value is not None, "DeepSpeed has no master weight of a trained parameter"
        return value
    return safe_get_full_optimizer_state(parameter, key)


def unpartitioned(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Without ZeRO: the float32 tensor of each parameter that the optimizer updates."""
    masters = rounded_and_masters(engine)
    return masters if masters is not None else {parameter: parameter for _, parameter in trained(engine.module)}


@torch.no_grad()
def put_back(engine: Any, saved: Mapping[str, Tensor], keys: Iterable[str], updates: int) -> None:
    """Restore the shares of all ranks (`gather`) and the count of updates (`count_updates`).

    The model was loaded with `weights(saved)` before the engine was made. Every rank calls it with all of `saved`.

    Raises KeyError for a parameter that `saved` lacks.
    """
    from deepspeed.utils import safe_set_full_optimizer_state

    keys = tuple(keys)
    present = {name.rsplit("/", 1)[1] for name in saved}
    stage = engine.zero_optimization_stage()
    if stage:
        _make_room(engine, present.intersection(keys), updates)
    for name, parameter in trained(engine.module):
        states = {key: saved[f"{name}/{key}"] for key in keys if f"{name}/{key}" in saved}
        put_weight(engine, parameter, saved[f"{name}/{WEIGHT}"])
        if stage:
            for key, value in states.items():
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
            continue
        target = unpartitioned(engine)[parameter]
        engine.optimizer.state[target] = {key: value.to(target.device) for key, value in states.items()}
        engine.optimizer.state[target]["step"] = _counter(engine, target, updates)


def put_weight(engine: Any, parameter: nn.Parameter, value: Tensor) -> None:
    """Set a parameter's master weight under any ZeRO stage. Every rank calls it."""
    from deepspeed.utils import safe_set_full_fp32_param

    if engine.zero_optimization_stage():
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
    else:
        unpartitioned(engine)[parameter].copy_(value)


def _make_room(engine: Any, keys: Iterable[str], updates: int) -> None:
    """Allocate the state that ZeRO's optimizer would allocate at its first step."""
    for partition in local_masters(engine):
        state = {key: torch.zeros_like(partition) for key in keys}
        base_optimizer(engine).state[partition] = {"step": _counter(engine, partition, updates), **state}
    if engine.zero_optimization_stage() < 3:
        link_optimizer_state(engine)


def count_updates(engine: Any) -> int:
    """The optimizer's own count of its updates, which corrects its moments' bias; 0 before the first.

    Not the number of steps: some of DeepSpeed's wrappers make an empty update at the start.
    """
    return max((int(state["step"]) for state in base_optimizer(engine).state.values() if "step" in state), default=0)


def _counter(engine: Any, tensor: Tensor, updates: int) -> Tensor | int:
    """`updates` in the type that the optimizer keeps."""
    if isinstance(base_optimizer(engine), torch.optim.AdamW):
        return torch.tensor(float(updates), dtype=torch.float32, device=tensor.device)
    return updates


def weights(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{parameter: float32 weight} in the shares of `gather`."""
    return {name.removesuffix(f"/{WEIGHT}"): saved[name] for name in saved if name.endswith(f"/{WEIGHT}")}


def full_state(engine: Any, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained master weights in float32 on the CPU, and `buffers`. Collective: every rank calls it."""
    state = dict(buffers)
    for name, parameter in trained(engine.module):
        value = whole(engine, parameter, WEIGHT)
        assert value is not None
        whole_value = value.detach().to("cpu", torch.float32, copy=True)
        state[name] = whole_value.view(()) if hasattr(parameter, SCALAR) else whole_value
    return state


class Ema:
    """Exponential moving average of the master weights; each rank averages its own partition, under every ZeRO stage.

    Karras et al. 2022 and others average with `decay` from the start. Here the first updates count for more, so that a
    short run does not average over its initial weights.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self.decay = decay
        self.masters = local_masters(engine)
        self.averages = [master.detach().clone() for master in self.masters]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Add the weights after `steps` steps to the average."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self.averages, [master.detach() for master in self.masters], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Put the averages in place of the master weights within it; the network's own weights stay."""
        kept = [master.detach().clone() for master in self.masters]
        torch._foreach_copy_([master.detach() for master in self.masters], self.averages)
        try:
            yield
        finally:
            torch._foreach_copy_([master.detach() for master in self.masters], kept)

    def gather(self, engine: Any, rank: int, workers: int) -> dict[str, Tensor]:
        """This rank's share of the averages, {"PARAMETER/ema": ...}, as gather() does."""
        with self.in_place():
            found = gather(engine, (), rank, workers)
        return {f"{name.removesuffix(WEIGHT)}{EMA}": value for name, value in found.items()}

    @torch.no_grad()
    def put_back(self, engine: Any, saved: Mapping[str, Tensor]) -> None:
        """Restore the shares of all ranks."""
        kept = [master.detach().clone() for master in self.masters]
        for name, parameter in trained(engine.module):
            put_weight(engine, parameter, saved[f"{name}/{EMA}"])
        torch._foreach_copy_(self.averages, [master.detach() for master in self.masters])
        torch._foreach_copy_([master.detach() for master in self.masters], kept)


def local_masters(engine: Any) -> list[Tensor]:
    """The float32 tensors that this rank's optimizer updates: all parameters, or its partition of them."""
    if engine.zero_optimization_stage() == 3:
        return partitioned_masters(engine)
    return [tensor for group in base_optimizer(engine).param_groups for tensor in group["params"]]
