"""Measure the steps since the last row of history.csv, and hand the row on."""

import math
import time

import torch
import torch.distributed
from torch import Tensor

from ...settings import TrainSettings
from ..ranks import RankInfo, RunStopped
from .history import History
from .rows import Row
from .stopwatch import Stopwatch, peak_memory_gb
from .utilisation import peak_flops, utilisation

ASK_S = 2.0  # seconds, or a step, between two looks for a request to stop


class Meter:
    """What happened since the last row, on one rank; `history` is rank 0's."""

    def __init__(self, train: TrainSettings, rank: RankInfo, history: History | None = None, flops: float = 0) -> None:
        """`flops`: of one clip, forward and backward; 0 if unknown."""
        self.train, self.rank, self.history, self.flops = train, rank, history, flops
        self.peak = peak_flops(rank.device, train.precision)
        self.ask_every = 1  # steps that take about ASK_S; the same on all ranks
        self.damaged: list[str] = []  # problems of this rank's clips that could not be read, since the start
        self._watch = Stopwatch(rank.device)
        self._reset()

    def _reset(self) -> None:
        self._loss = torch.zeros((), device=self.rank.device)
        self._steps, self._seconds = 0, 0.0

    def start_step(self) -> None:
        """Begin a step: the time until the next mark is its first part's."""
        self._begun = time.monotonic()
        self._watch.mark("")

    def mark(self, part: str) -> None:
        """Name the part of a step that has just ended."""
        self._watch.mark(part)

    def add(self, loss: Tensor, damaged: tuple[str, ...]) -> None:
        """Add a micro-batch's share of the step's loss, and the problems of its clips."""
        self._loss += loss
        self.damaged += damaged

    def end_step(self) -> None:
        """Count the step and its seconds."""
        self._steps += 1
        self._seconds += time.monotonic() - self._begun

    def row(self, step: int) -> Row:
        """Means since the last row, after `step` steps; a barrier for all ranks. Raises RunStopped."""
        begun, workers = time.monotonic(), self.rank.workers
        counts = torch.tensor([float(len(self.damaged)), self._seconds], device=self.rank.device)
        sums = torch.cat([(self._loss / self._steps).reshape(1), counts])
        torch.distributed.all_reduce(sums)
        mean, damaged = float(sums[0]) / workers, int(sums[1])
        self.ask_every = max(1, int(ASK_S * self._steps * workers / float(sums[2])))
        self._seconds += time.monotonic() - begun  # a GPU's unfinished work, and waiting for other ranks
        if not math.isfinite(mean):
            raise RunStopped(f"step {step}: the loss is {mean}; lower the learning rate or set train.clip_norm")
        if damaged and self.train.damaged_clips == "stop":
            raise RunStopped(f"step {step}: {self._problems()[0]}; or set train.damaged_clips skip")
        rate = self._steps * self.train.global_batch / self._seconds
        row: Row = {"loss": mean, "samples_per_s": rate}
        if self.flops:
            row |= utilisation(rate, self.flops, workers, self.peak)
        row |= self._watch.shares() | {"memory_gb": peak_memory_gb(self.rank.device)}
        if damaged:
            row["damaged"] = damaged
        self._reset()
        return row

    def log(self, step: int, row: Row) -> None:
        """Hand a row on to the history, on rank 0."""
        if self.history:
            self.history.add(step, **row)

    def save_history(self) -> None:
        """Write history.csv, on rank 0; its time counts for no part of a step."""
        if self.history:
            self.history.save()
        self._watch.mark("")

    def _problems(self) -> list[str]:
        """What is wrong with the clips that any rank could not read. Every rank calls it."""
        parts: list[list[str]] = [[]] * self.rank.workers
        torch.distributed.all_gather_object(parts, self.damaged)
        return [problem for part in parts for problem in part]
