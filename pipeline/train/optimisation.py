"""The optimizer, its parameter groups, and the learning rate of a step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings import TrainSettings

MUON_FACTOR = 7.0  # an orthogonal update's entries are smaller than AdamW's, which are about 1
NOT_DECAYED = (nn.Embedding, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels, which decay, and biases, norms and embeddings, which do not."""
    kept = {id(p) for module in model.modules() if isinstance(module, NOT_DECAYED) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in kept]
    others = [p for p in trained if p.ndim <= 1 or id(p) in kept]
    if not weight_decay:
        return [{"params": trained, "weight_decay": 0.0}]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """train.optimizer over the model's trained parameters."""
    if train.optimizer == "muon":
        return muon(model, train)
    # PyTorch's own fused kernel, on CPU and GPU: DeepSpeed's would be compiled on the machine, at first use
    groups = parameter_groups(model, train.weight_decay)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.adam_betas, fused=True)


def muon(model: nn.Module, train: TrainSettings) -> "Muon":
    """Muon on the matrices of the blocks; AdamW, as Muon's authors advise, on embeddings, output and vectors."""
    inner = {id(p) for block in model.modules() if isinstance(block, nn.ModuleList) for p in block.parameters()}
    groups = [
        {**group, "params": params, "orthogonal": orthogonal, "factor": MUON_FACTOR if orthogonal else 1.0}
        for group in parameter_groups(model, train.weight_decay)
        for orthogonal in (True, False)
        if (params := [p for p in group["params"] if (id(p) in inner and p.ndim > 1) == orthogonal])
    ]
    return Muon(groups, train.learning_rate)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan et al. 2024) where a group says "orthogonal", AdamW elsewhere.

    A group's rate is lr * factor, so that one schedule serves both. Takes kernels too, as (out, in h w) matrices,
    which torch.optim.Muon does not.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": 0.95, "weight_decay": 0.0, "orthogonal": False, "factor": 1.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = (self._orthogonal if group["orthogonal"] else self._adam)(parameter, parameter.grad, group)
                rate = group["lr"] * group["factor"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
        average.lerp_(gradient, 1 - group["momentum"])
        return orthogonalise(gradient.lerp(average, group["momentum"]).flatten(1)).view_as(parameter)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        state["step"] = step = state.get("step", 0) + 1
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient.square(), 1 - beta2)
        return mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + 1e-8)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix, by five quintic Newton-Schulz steps; tall ones are scaled up."""
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if rows > columns else x) * max(1.0, rows / columns) ** 0.5


def learning_rate(step: int, train: TrainSettings) -> float:
    """The rate of step `step` (from 0): linear warm-up to train.learning_rate, then constant or cosine to 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.lr_schedule == "constant":
        return train.learning_rate
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Set the rate of an optimizer's groups."""
    for group in groups:
        group["lr"] = rate
