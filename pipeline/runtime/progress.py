"""The progress line of long work: count, rate and time left, the same everywhere."""

import time
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Put a time into words, to the nearest second below an hour: 3725 -> "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """Count what is done of `total`; tell the rate and the time left.

    >>> progress = Progress(240, "clips")
    >>> progress.add(60)
    >>> progress.line("2 rejected")
    "60 of 240 clips, 4.0 clips/s, 2 rejected, 45 s to go"
    """

    def __init__(self, total: int, unit: str, every_s: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """`every_s`: seconds between two lines, for steps that end too often for a line each."""
        self.total, self.unit, self.every_s = total, unit, every_s
        self.done = 0
        self._clock = clock
        self._started = self._said = clock()

    def add(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Units a second since the start; 0 before any time has passed."""
        seconds = self.seconds
        return self.done / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at this rate; None before the first unit is done."""
        return max(0, self.total - self.done) / self.rate if self.rate else None

    def due(self) -> bool:
        """Whether it is time for a line: at the end, and `every_s` after the last one."""
        now = self._clock()
        if self.done < self.total and now - self._said < self.every_s:
            return False
        self._said = now
        return True

    def line(self, *details: str) -> str:
        """The line, with `details` between rate and time left."""
        left = self.seconds_left
        rate = f"{self.rate:.1f}" if self.rate >= 10 else f"{self.rate:.2g}"
        parts = [f"{self.done} of {self.total} {self.unit}", f"{rate} {self.unit}/s", *details]
        return ", ".join(parts if left is None else [*parts, f"{duration(left)} to go"])
