"""Measure the steps since the last row of history.csv."""

import math
import time

import torch
import torch.distributed

from ...settings import TrainSettings
from ..ranks import RankInfo, RunStopped
from .stopwatch import Stopwatch, peak_memory_gb
from .utilisation import peak_flops, utilisation

ASK_S = 2.0  # seconds, or a step, between two looks for a request to stop


class Meter:
    """What happened since the last row."""

    def __init__(self, train: TrainSettings, place: RankInfo, damaged: list[str], flops: float) -> None:
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
