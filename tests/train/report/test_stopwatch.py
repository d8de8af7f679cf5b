"""Where the time goes is told by what was marked."""

import time

import pytest
import torch

from pipeline.train.report.stopwatch import Stopwatch, peak_memory_gb


def test_time_goes_to_the_mark_that_ends_it_and_unmarked_time_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", iter([0.0, 1.0, 4.0, 9.0, 9.0, 11.0]).__next__)
    watch = Stopwatch(torch.device("cpu"))
    for part in ("", "data", "forward", "", "data"):
        watch.mark(part)
    assert watch.shares() == {"data": 0.25, "forward": 0.75}
    assert watch.shares() == {}, "counted once"
    watch.mark("checkpoint")
    assert watch.shares() == {"checkpoint": 1}, "from the last mark before"


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_gb(torch.device("cpu"))
    held = torch.ones(100_000_000)
    assert peak_memory_gb(torch.device("cpu")) > before + 0.2 * held.nbytes / 1e9
