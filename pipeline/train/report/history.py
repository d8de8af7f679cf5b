"""Record a run while it trains: history.csv, TensorBoard, progress lines. Rank 0 only, no Ray."""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from ...runtime.progress import Progress, duration
from ...storage.files import is_remote, resolve, write_bytes
from .rows import Row, read_history
from .trackers import Tracker, track

HISTORY_COLUMNS = (
    "step",  # optimizer steps made
    "loss",  # mean over the steps since the last row
    "validation_loss",  # of held-out clips at fixed times and noises
    "learning_rate",
    "gradient_norm",  # of that step, before clipping
    "samples_per_s",  # of all workers since the last row, without checkpoints and validation
    "data",  # shares of the time since the last row: waiting for a batch,
    "forward",  # the loss,
    "backward",
    "optimizer",  # and what engine.step() does besides: clipping, exchange between workers,
    "checkpoint",  # and saving
    "tflops",  # model TFLOP/s of a worker,
    "mfu",  # and as a share of its GPU's peak
    "memory_gb",  # the most that rank 0 has held: GPU memory, or resident memory of a CPU worker
    "damaged",  # clips met since this start that were left out, their checksum being wrong
    "seconds",  # of the whole run so far, the time between two starts not counted
)
WORDS = {  # of the line that a row prints
    "loss": "loss {:.4f}",
    "validation_loss": "validation {:.4f}",
    "damaged": "{:.0f} damaged clips left out",
    "samples_per_s": "{:.1f} clips/s",
    "mfu": "MFU {:.0%}",
}
HISTORY = "history.csv"
CURVE = "learning_curve.png"
SAVE_S = 10.0

Show = Callable[[Row], None]


class History:
    """Rows are kept in memory and written whole, so that the file is never torn, and may be remote.

    On resume after `start` steps, rows of later steps are dropped: those steps are made again.
    """

    def __init__(
        self, folder: str, start: int, steps: int, trackers: Sequence[Tracker] = (), show: Show | None = None
    ) -> None:
        """`show` is called with every new row."""
        from torch.utils.tensorboard import SummaryWriter

        self.show = show
        self.folder, self.address, self.steps = folder, f"{folder}/{HISTORY}", steps
        # a start from nothing writes step 0, validation before training, anew
        self.rows = [row for row in read_history(self.address) if start and (row["step"] or 0) <= start]
        self.before = (self.rows[-1]["seconds"] or 0.0) if self.rows else 0.0
        self.saved = time.monotonic()
        self.start, self.progress = start, Progress(steps - start, "steps")
        self.trackers = list(trackers)
        self.remote = f"{folder}/tensorboard"
        local = tempfile.mkdtemp(prefix="tensorboard-") if is_remote(folder) else resolve(self.remote)[1]
        self.local = Path(local)
        self.board = SummaryWriter(local, purge_step=start + 1 if start else None, flush_secs=15)

    def add(self, step: int, **values: float | None) -> None:
        """Add a row after `step` steps, and print it as one line."""
        row: Row = {"step": step, **values, "seconds": self.before + self.progress.seconds}
        self.rows.append(row)
        for name, value in values.items():
            if value is not None:
                self.board.add_scalar(name, value, step)
        self.trackers = track(self.trackers, step, {k: v for k, v in values.items() if v is not None})
        print(self.line(row), flush=True)
        if self.show:
            self.show(row)
        if time.monotonic() - self.saved > SAVE_S:
            self.save()

    def line(self, row: Row) -> str:
        """The row in words, with the time left."""
        step = int(row["step"] or 0)
        parts = [words.format(row[name]) for name, words in WORDS.items() if row.get(name) is not None]
        self.progress.done = step - self.start
        if (left := self.progress.seconds_left) is not None:
            parts.append(f"{duration(left)} to go")
        return ", ".join([f"step {step}/{self.steps}", *parts])

    def save(self) -> None:
        """Write history.csv, and for a remote run the TensorBoard files."""
        cells = [HISTORY_COLUMNS, *([_cell(row.get(name)) for name in HISTORY_COLUMNS] for row in self.rows)]
        write_bytes(self.address, "".join(f"{','.join(line)}\n" for line in cells).encode())
        self.board.flush()
        if is_remote(self.remote):
            filesystem, inner = resolve(self.remote)
            pafs.copy_files(str(self.local), inner, pafs.LocalFileSystem(), filesystem)
        self.saved = time.monotonic()

    def close(self) -> None:
        """Write everything, and the picture."""
        from .learning_curve import learning_curve_png

        self.save()
        write_bytes(f"{self.folder}/{CURVE}", learning_curve_png(self.rows, self.folder))
        self.board.close()
        for tracker in self.trackers:
            tracker.close()

    def last(self, name: str) -> float | None:
        """The latest value of a column."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def median(self, name: str) -> float | None:
        """The upper median of a column; None if it has no values."""
        values = sorted(value for row in self.rows if (value := row.get(name)))
        return values[len(values) // 2] if values else None

    def summary(self) -> dict[str, Any]:
        """The history's part of summary.json."""
        return {
            "final_loss": self.last("loss"),
            "validation_losses": [
                [int(row["step"] or 0), row["validation_loss"]]
                for row in self.rows
                if row.get("validation_loss") is not None
            ],
            **{name: self.median(name) for name in ("samples_per_s", "tflops", "mfu")},
            "seconds": self.last("seconds"),
        }


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and not math.isinf(value) else f"{value:.6g}"
