"""THE training loop, as one worker sees it: batch -> loss -> backward -> step -> log -> validate -> checkpoint."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed

from ..data.load.batches import TrainingBatch
from ..settings import TrainSettings
from .deepspeed.state import Ema
from .losses import Loss, Task
from .optimisation import learning_rate, set_learning_rate
from .ranks import MoveAsked, RankInfo, StopAsked, StopRequest, agree
from .report.history import History
from .report.meter import Meter

Batches = Iterator[list[TrainingBatch]]


Save = Callable[[int, dict[str, float | None]], None]


def train_steps(
    engine: Any,
    task: Task,
    train: TrainSettings,
    batches: Batches,
    held_out: list[TrainingBatch],
    history: History | None,
    save: Save,
    place: RankInfo,
    start: int,
    ema: Ema | None = None,
    poll: Callable[[], StopRequest] = lambda: StopRequest.GO_ON,
    heartbeat: Callable[[], None] = lambda: None,
    flops: float = 0.0,
) -> None:
    """Make the optimizer steps from `start` to train.steps. Every rank calls it; `history` is rank 0's.

    Raises RunStopped, on all ranks, when the loss is no number any more and, unless train.damaged_clips is skip, when a
    clip was damaged: before the next checkpoint. Raises StopAsked or MoveAsked, after a checkpoint, when `poll()` says so
    on any rank; all ranks call it at the same steps, every ASK_S. `heartbeat()` is called at the start of every step, and
    before a validation. `flops`: of the model a clip, forward and backward; 0: not known.
    """
    meter = Meter(train, place, [problem for micro_batch in held_out for problem in micro_batch.damaged], flops)
    heartbeat()
    if start == 0 and held_out:
        before = validate(engine, task.loss, held_out, place)
        if history:
            history.add(0, validation_loss=before)
    for step in range(start, train.steps):
        heartbeat()
        begun = time.monotonic()
        meter.watch.mark("")
        micro_batches = next(batches)
        meter.watch.mark("data")
        rate = learning_rate(step, train)
        set_learning_rate(engine.optimizer.param_groups, rate)
        for micro_batch in micro_batches:
            micro_batch = micro_batch.to(place.device)
            # DeepSpeed takes the mean over micro-batches and workers: together the mean over the global batch
            share = place.workers * len(micro_batches) / train.global_batch
            torch.manual_seed(int(micro_batch.seeds[0]))  # dropout's: the same after a restart, on whatever worker
            loss = (task.loss(engine, micro_batch) * micro_batch.weight).sum() * share
            meter.watch.mark("forward")
            engine.backward(loss)
            meter.watch.mark("backward")
            engine.step()
            meter.watch.mark("optimizer")
            meter.loss += loss.detach() / len(micro_batches)
            meter.damaged += micro_batch.damaged
        if ema:
            ema.update(step + 1)
        meter.stepped(time.monotonic() - begun)

        done = step + 1
        row: dict[str, float | None] = {}
        asked = StopRequest.GO_ON if done % meter.ask_every else agree(poll(), place)
        keep = done % train.checkpoint_every == 0 or done == train.steps or asked != StopRequest.GO_ON
        if keep or done % train.log_every == 0:
            row = meter.row(done)
            row |= {"learning_rate": rate, "gradient_norm": gradient_norm(engine)}
        if held_out and (done % train.validate_every == 0 or done == train.steps):
            heartbeat()
            row["validation_loss"] = validate(engine, task.loss, held_out, place)
        if history and row:
            history.add(done, **row)
        if keep:
            if history:
                history.save()
            meter.watch.mark("")
            save(done, row)
            meter.watch.mark("checkpoint")
        if asked == StopRequest.STOP and done < train.steps:
            raise StopAsked(f"step {done}: stopped as asked")
        if asked == StopRequest.MOVE and done < train.steps:
            raise MoveAsked(f"step {done}: a node of the workers is about to be taken away")


@torch.no_grad()
def validate(engine: Any, loss: Loss, held_out: list[TrainingBatch], place: RankInfo) -> float:
    """Mean loss over all workers' held-out clips, each at its fixed time and noise. Every rank calls it."""
    engine.eval()
    total = torch.zeros(2, dtype=torch.float64, device=place.device)
    for micro_batch in held_out:
        micro_batch = micro_batch.to(place.device)
        losses = loss(engine, micro_batch).double()
        total += torch.stack([(losses * micro_batch.weight).sum(), micro_batch.weight.sum().double()])
    engine.train()
    torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def gradient_norm(engine: Any) -> float | None:
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
