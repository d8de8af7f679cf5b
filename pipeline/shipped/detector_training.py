"""Train the detector that ships with the package: a classifier of motions, in plain PyTorch and one process."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from .detector import Detector, shrink, to_input

SHIFT = 3  # pixels, of SIDE


@dataclass(frozen=True)
class DetectorTraining:
    """Settings that the shipped detector was trained with."""

    epochs: int = 8
    batch: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0


def train(
    clips: torch.Tensor, labels: torch.Tensor, classes: int, training: DetectorTraining
) -> Iterator[tuple[Detector, float]]:
    """Fit a detector to `clips`, uint8 (N, F, H, W, 3), and their `labels` (N,).

    Yields the detector and its mean loss after each epoch.
    """
    torch.manual_seed(training.seed)  # modules draw their weights from the global generator
    generator = torch.Generator().manual_seed(training.seed)
    module = Detector(classes)
    clips = torch.cat([shrink(chunk) for chunk in clips.split(64)])  # once, not in every epoch
    steps = training.epochs * -(-len(clips) // training.batch)
    optimizer = torch.optim.AdamW(module.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    for _ in range(training.epochs):
        total = 0.0
        module.train()
        for index in torch.randperm(len(clips), generator=generator).split(training.batch):
            loss = F.cross_entropy(module(augment(clips[index], generator)).logits, labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        yield module, total / len(clips)


def augment(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Convert like `to_input`; shift each clip by up to SHIFT pixels, shuffle its colours and change its contrast.

    None of these changes the direction of motion, which mirroring would.
    """
    height, width = clips.shape[2:4]
    padded = F.pad(to_input(clips).flatten(0, 1), (SHIFT,) * 4, mode="replicate").unflatten(0, clips.shape[:2])
    corners = torch.randint(2 * SHIFT + 1, (len(clips), 2), generator=generator).tolist()
    moved = [
        clip[:, torch.randperm(3, generator=generator), top : top + height, left : left + width]
        for clip, (top, left) in zip(padded, corners, strict=True)
    ]
    return torch.stack(moved) * (0.7 + 0.6 * torch.rand(len(clips), 1, 1, 1, 1, generator=generator))


@torch.inference_mode()
def accuracy(module: Detector, clips: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of `clips` that the detector, in eval mode, classifies correctly."""
    found = torch.cat([module(to_input(chunk)).logits.argmax(1) for chunk in clips.split(32)])
    return float((found == labels).double().mean())
