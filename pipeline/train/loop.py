"""THE training loop, as one worker sees it: batch -> loss -> backward -> step -> log -> validate -> checkpoint."""

import math
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed

from pipeline.data.batches import TrainingBatch
from pipeline.settings import TrainSettings
from pipeline.train.history import History
from pipeline.train.optimisation import learning_rate, set_learning_rate
from pipeline.train.state import Ema
from pipeline.train.stopwatch import Stopwatch, peak_memory_gb
from pipeline.train.tasks import Loss, Task
from pipeline.train.utilisation import peak_flops, utilisation

Batches = Iterator[list[TrainingBatch]]
Save = Callable[[int, dict[str, float | None]], None]
ASK_S = 2.0  # seconds, or a step, between two looks for a request to stop


class RunStopped(RuntimeError):
    """All ranks end here, together: going on is of no use, and neither is starting again. The message says why."""


class StopAsked(RunStopped):
    """The job was told to stop: all ranks have saved a checkpoint of this step."""


class MoveAsked(StopAsked):
    """A node of the workers is about to be taken away: the same, and others may go on."""


class Told(IntEnum):
    """What a rank is told from outside. Of several ranks' the greatest counts."""

    GO_ON = 0
    MOVE = 1
    STOP = 2


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
    ema: Ema | None = None,
    told: Callable[[], Told] = lambda: Told.GO_ON,
    alive: Callable[[], None] = lambda: None,
    flops: float = 0.0,
) -> None:
    """Make the optimizer steps from `start` to train.steps. Every rank calls it; `history` is rank 0's.

    Raises RunStopped, on all ranks, when the loss is no number any more and, unless train.damaged_clips is skip, when a
    clip was damaged: before the next checkpoint. Raises StopAsked or MoveAsked, after a checkpoint, when `told()` says so
    on any rank; all ranks call it at the same steps, every ASK_S. `alive()` is called at the start of every step, and
    before a validation. `flops`: of the model a clip, forward and backward; 0: not known.
    """
    meter = Meter(train, place, [problem for piece in held_out for problem in piece.damaged], flops)
    alive()
    if start == 0 and held_out:
        before = validate(engine, task.loss, held_out, place)
        if history:
            history.add(0, validation_loss=before)
    for step in range(start, train.steps):
        alive()
        begun = time.monotonic()
        meter.watch.mark("")
        pieces = next(batches)
        meter.watch.mark("data")
        rate = learning_rate(step, train)
        set_learning_rate(engine.optimizer.param_groups, rate)
        for piece in pieces:
            piece = piece.to(place.device)
            # DeepSpeed takes the mean over pieces and workers: together the mean over the global batch
            share = place.workers * len(pieces) / train.global_batch
            torch.manual_seed(int(piece.seeds[0]))  # dropout's: the same after a restart, on whatever worker
            loss = (task.loss(engine, piece) * piece.weight).sum() * share
            meter.watch.mark("forward")
            engine.backward(loss)
            meter.watch.mark("backward")
            engine.step()
            meter.watch.mark("optimizer")
            meter.loss += loss.detach() / len(pieces)
            meter.damaged += piece.damaged
        if ema:
            ema.update(step + 1)
        meter.stepped(time.monotonic() - begun)

        done = step + 1
        row: dict[str, float | None] = {}
        asked = Told.GO_ON if done % meter.ask_every else agreed(told(), place)
        keep = done % train.checkpoint_every == 0 or done == train.steps or asked != Told.GO_ON
        if keep or done % train.log_every == 0:
            row = meter.row(done)
            row |= {"learning_rate": rate, "gradient_norm": gradient_norm(engine)}
        if held_out and (done % train.validate_every == 0 or done == train.steps):
            alive()
            row["validation_loss"] = validate(engine, task.loss, held_out, place)
        if history and row:
            history.add(done, **row)
        if keep:
            if history:
                history.save()
            meter.watch.mark("")
            save(done, row)
            meter.watch.mark("checkpoint")
        if asked == Told.STOP and done < train.steps:
            raise StopAsked(f"step {done}: stopped as asked")
        if asked == Told.MOVE and done < train.steps:
            raise MoveAsked(f"step {done}: a node of the workers is about to be taken away")


def agreed(told: Told, place: Place) -> Told:
    """What all ranks are told together. Every rank calls it."""
    answer = torch.tensor(int(told), device=place.device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX)
    return Told(int(answer))


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

    def __init__(self, train: TrainSettings, place: Place, damaged: list[str], flops: float) -> None:
        self.train, self.place = train, place
        self.flops, self.peak = flops, peak_flops(place.device, train.precision)
        self.ask_every = 1  # steps that take ASK_S or so; the same on all ranks
        self.watch = Stopwatch(place.device)
        self.damaged = damaged  # what is wrong with this rank's clips that could not be read, since the start
        self.reset()

    def reset(self) -> None:
        self.loss = torch.zeros((), device=self.place.device)
        self.steps, self.seconds = 0, 0.0

    def stepped(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds

    def row(self, step: int) -> dict[str, float | None]:
        """Means since the last row; a barrier for all ranks. Raises RunStopped."""
        begun = time.monotonic()
        counts = torch.tensor([float(len(self.damaged)), self.seconds], device=self.place.device)
        sums = torch.cat([(self.loss / self.steps).reshape(1), counts])
        torch.distributed.all_reduce(sums)
        mean, damaged = float(sums[0]) / self.place.workers, int(sums[1])
        self.ask_every = max(1, int(ASK_S * self.steps * self.place.workers / float(sums[2])))
        self.seconds += time.monotonic() - begun  # a GPU's unfinished work, and waiting for other ranks
        if not math.isfinite(mean):
            raise RunStopped(f"step {step}: the loss is {mean}; lower the learning rate or set train.clip_norm")
        if damaged and self.train.damaged_clips == "stop":
            raise RunStopped(f"step {step}: {self.problems()[0]}; or set train.damaged_clips skip")
        rate = self.steps * self.train.global_batch / self.seconds
        row: dict[str, float | None] = {
            "loss": mean,
            "samples_per_s": rate,
            **(utilisation(rate, self.flops, self.place.workers, self.peak) if self.flops else {}),
            **self.watch.shares(),
            "memory_gb": peak_memory_gb(self.place.device),
        }
        if damaged:
            row["damaged"] = damaged
        self.reset()
        return row

    def problems(self) -> list[str]:
        """What is wrong with the clips that any rank could not read. Every rank calls it."""
        parts: list[list[str]] = [[]] * self.place.workers
        torch.distributed.all_gather_object(parts, self.damaged)
        return [problem for part in parts for problem in part]
