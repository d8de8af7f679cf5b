"""AdamW's parameter groups and the learning rate of a step: plain functions, no state to save."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.settings import TrainSettings

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


def adamw(model: nn.Module, train: TrainSettings) -> torch.optim.AdamW:
    """PyTorch's own fused kernel, on CPU and GPU: DeepSpeed's would be compiled on the machine, at first use."""
    groups = parameter_groups(model, train.weight_decay)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.adam_betas, fused=True)


def learning_rate(step: int, train: TrainSettings) -> float:
    """The rate of step `step` (from 0): linear warm-up to train.learning_rate, then constant or cosine to 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.lr_schedule == "constant":
        return train.learning_rate
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    for group in groups:
        group["lr"] = rate
