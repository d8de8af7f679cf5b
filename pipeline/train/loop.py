"""THE training loop, as one worker sees it: batch -> loss -> backward -> step -> log -> validate -> checkpoint."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed

from pipeline.data.batches import TrainingBatch
from pipeline.settings import TrainSettings
from pipeline.train.history import History
from pipeline.train.optimisation import learning_rate, set_learning_rate
from pipeline.train.tasks import Loss, Task

Batches = Iterator[list[TrainingBatch]]
Save = Callable[[int, dict[str, float | None]], None]


class Place(NamedTuple):
    """Where this worker stands."""

    rank: int
    workers: int
    device: torch.device


def train_steps(
    engine: Any,
    task: Task,
    train: TrainSettings,
    batches: Batches,
    held_out: list[TrainingBatch],
    history: History | None,
    save: Save,
    place: Place,
    start: int,
) -> None:
    """Make the optimizer steps from `start` to train.steps. Every rank calls it; `history` is rank 0's.

    Raises FloatingPointError when the loss is no number any more.
    """
    meter = Meter(train.global_batch, place.device)
    if start == 0 and held_out:
        before = validate(engine, task.loss, held_out, place)
        if history:
            history.add(0, validation_loss=before)
    for step in range(start, train.steps):
        begun = time.monotonic()
        pieces = next(batches)
        meter.waited += time.monotonic() - begun
        rate = learning_rate(step, train)
        set_learning_rate(engine.optimizer.param_groups, rate)
        for piece in pieces:
            piece = piece.to(place.device)
            # DeepSpeed takes the mean over pieces and workers: together the mean over the global batch
            share = place.workers * len(pieces) / train.global_batch
            loss = (task.loss(engine, piece) * piece.weight).sum() * share
            engine.backward(loss)
            engine.step()
            meter.loss += loss.detach() / len(pieces)
        meter.stepped(time.monotonic() - begun)

        done = step + 1
        row: dict[str, float | None] = {}
        if done % train.log_every == 0 or done == train.steps:
            row = meter.row(done)
            row |= {"learning_rate": rate, "gradient_norm": gradient_norm(engine)}
        if held_out and (done % train.validate_every == 0 or done == train.steps):
            row["validation_loss"] = validate(engine, task.loss, held_out, place)
        if history and row:
            history.add(done, **row)
        if done % train.checkpoint_every == 0 or done == train.steps:
            if history:
                history.save()
            save(done, row)


@torch.no_grad()
def validate(engine: Any, loss: Loss, held_out: list[TrainingBatch], place: Place) -> float:
    """Mean loss over all workers' held-out clips, each at its fixed time and noise. Every rank calls it."""
    engine.eval()
    total = torch.zeros(2, dtype=torch.float64, device=place.device)
    for piece in held_out:
        piece = piece.to(place.device)
        losses = loss(engine, piece).double()
        total += torch.stack([(losses * piece.weight).sum(), piece.weight.sum().double()])
    engine.train()
    torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def gradient_norm(engine: Any) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


class Meter:
    """What happened since the last row."""

    def __init__(self, global_batch: int, device: torch.device) -> None:
        self.global_batch = global_batch
        self.loss = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        self.loss = torch.zeros_like(self.loss)
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0

    def stepped(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds

    def row(self, step: int) -> dict[str, float | None]:
        """Means since the last row; a barrier for all ranks. Raises FloatingPointError."""
        begun = time.monotonic()
        loss = self.loss / self.steps
        torch.distributed.all_reduce(loss)
        mean = float(loss) / torch.distributed.get_world_size()
        self.seconds += time.monotonic() - begun  # a GPU's unfinished work, and waiting for other ranks
        if mean != mean or abs(mean) == float("inf"):
            raise FloatingPointError(f"step {step}: the loss is {mean}; lower the learning rate or set train.clip_norm")
        row: dict[str, float | None] = {
            "loss": mean,
            "samples_per_s": self.steps * self.global_batch / self.seconds,
            "data_wait": self.waited / self.seconds,
        }
        self.reset()
        return row
