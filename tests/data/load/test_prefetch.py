"""Batches are made ahead of the step, in order, until their consumer is gone."""

import threading
import time

import pytest

from pipeline.data.load.prefetch import prefetch


def test_prefetch_works_ahead_and_ends_with_its_consumer() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    steps = prefetch(make, range(100), ahead=2)
    assert next(steps) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 3 <= len(made) <= 5
    steps.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "prefetch" and thread.is_alive() for thread in threading.enumerate())


def test_an_error_comes_at_its_step() -> None:
    steps = prefetch(lambda step: 1 // (2 - step), range(4))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(steps)
