"""Time and memory of a training, on a GPU by the GPU's own clock and without waiting for it."""

import resource
import sys
import time
from collections import defaultdict

import torch


class Stopwatch:
    """Marks between the parts of a step. Time between two marks belongs to the later one; to none if that is ""."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, part: str) -> None:
        """Name the part that has just ended."""
        if self.device.type != "cuda":
            self.marks.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append((part, event))

    def shares(self) -> dict[str, float]:
        """Each part's share of the time of all parts since the last call; waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                spent[part] += _between(before, after)
        self.marks = self.marks[-1:]
        total = sum(spent.values())
        return {part: seconds / total for part, seconds in spent.items()} if total else {}


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    assert not isinstance(before, float) and not isinstance(after, float)
    return float(before.elapsed_time(after)) / 1e3


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in 1e9 bytes: its tensors on a GPU, or the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
