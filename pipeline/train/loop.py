"""THE training loop, as one worker sees it: batch -> loss -> backward -> step -> log -> validate -> checkpoint."""

from collections.abc import Iterator

import torch
import torch.distributed

from ..data.load.batches import TrainingBatch
from .engine import TrainingEngine
from .losses import Loss
from .ranks import MoveAsked, StopAsked, StopRequest, agree
from .report.meter import Meter, Row

Batches = Iterator[list[TrainingBatch]]


class RunControl:
    """What surrounds a run's steps: where it is saved, and who may stop it. This one does neither."""

    def heartbeat(self) -> None:
        """Say that the worker is alive; called before every step and every validation."""

    def poll(self) -> StopRequest:
        """What this rank is asked to do; all ranks call it at the same steps, every ASK_S."""
        return StopRequest.GO_ON

    def save(self, engine: TrainingEngine, row: Row) -> None:
        """Keep the engine's state, with the last row of the history; every rank calls it."""


def train_steps(
    engine: TrainingEngine, loss: Loss, batches: Batches, checks: list[TrainingBatch], meter: Meter, control: RunControl
) -> None:
    """Make the optimizer steps that are left of train.steps. Every rank calls it.

    Raises RunStopped, on all ranks and before the next checkpoint, when the loss is not finite any more and, unless
    train.damaged_clips is skip, when a clip was damaged. Raises StopAsked or MoveAsked, after a checkpoint, when
    control.poll() says so on any rank.
    """
    train, rank = engine.train, engine.rank
    meter.damaged += [problem for micro_batch in checks for problem in micro_batch.damaged]
    control.heartbeat()
    if engine.steps == 0 and checks:
        meter.log(0, {"validation_loss": validate(engine, loss, checks)})
    while engine.steps < train.steps:
        # The step's clips: the same global batch whatever the number of workers
        control.heartbeat()
        meter.start_step()
        micro_batches = next(batches)
        meter.mark("data")

        # Forward, backward and update, micro-batch by micro-batch
        learning_rate = engine.set_learning_rate()
        for micro_batch in micro_batches:
            micro_batch = micro_batch.to(rank.device)
            # DeepSpeed takes the mean over micro-batches and workers: together the mean over the global batch
            share = rank.workers * len(micro_batches) / train.global_batch
            torch.manual_seed(int(micro_batch.seeds[0]))  # dropout's: the same after a restart, on whatever worker
            mean = (loss(engine.network, micro_batch) * micro_batch.weight).sum() * share
            meter.mark("forward")
            engine.network.backward(mean)
            meter.mark("backward")
            engine.network.step()
            meter.mark("optimizer")
            meter.add(mean.detach() / len(micro_batches), micro_batch.damaged)
        engine.end_step()
        meter.end_step()

        # What is due after this step
        done, last = engine.steps, engine.steps == train.steps
        asked = StopRequest.GO_ON if done % meter.ask_every else agree(control.poll(), rank)
        keep = done % train.checkpoint_every == 0 or last or asked != StopRequest.GO_ON
        row: Row = {}
        if keep or done % train.log_every == 0:
            row = meter.row(done) | {"learning_rate": learning_rate, "gradient_norm": engine.gradient_norm()}
        if checks and (done % train.validate_every == 0 or last):
            control.heartbeat()
            row["validation_loss"] = validate(engine, loss, checks)
        if row:
            meter.log(done, row)
        if keep:
            meter.save_history()
            control.save(engine, row)
            meter.mark("checkpoint")

        # A stop that was asked for, now that nothing is lost by it
        if asked == StopRequest.STOP and not last:
            raise StopAsked(f"step {done}: stopped as asked")
        if asked == StopRequest.MOVE and not last:
            raise MoveAsked(f"step {done}: a node of the workers is about to be taken away")


@torch.no_grad()
def validate(engine: TrainingEngine, loss: Loss, checks: list[TrainingBatch]) -> float:
    """Mean loss over all workers' held-out clips, each at its fixed time and noise. Every rank calls it."""
    engine.network.eval()
    total = torch.zeros(2, dtype=torch.float64, device=engine.rank.device)
    for micro_batch in checks:
        micro_batch = micro_batch.to(engine.rank.device)
        losses = loss(engine.network, micro_batch).double()
        total += torch.stack([(losses * micro_batch.weight).sum(), micro_batch.weight.sum().double()])
    engine.network.train()
    torch.distributed.all_reduce(total)
    return float(total[0] / total[1])
