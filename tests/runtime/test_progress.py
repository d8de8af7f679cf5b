"""The progress line has count, rate and time left, and is due when it should be."""

import pytest

from pipeline.runtime.progress import Progress, duration


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (3599.6, "1 h 0 min"), (3725, "1 h 2 min")],
)
def test_duration_is_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_line_has_count_rate_details_and_time_left() -> None:
    clock = Clock()
    progress = Progress(240, "clips", clock=clock)
    assert progress.line() == "0 of 240 clips, 0 clips/s"
    clock.now += 15
    progress.add(60)
    assert progress.line("2 rejected") == "60 of 240 clips, 4 clips/s, 2 rejected, 45 s to go"
    assert (progress.seconds, progress.rate, progress.seconds_left) == (15, 4, 45)
    progress.add(180)
    assert progress.line() == "240 of 240 clips, 16.0 clips/s, 0 s to go"


def test_line_is_due_after_its_interval_and_at_the_end() -> None:
    clock = Clock()
    progress = Progress(3, "shards", every_s=5, clock=clock)
    progress.add()
    assert not progress.due()
    clock.now += 5
    assert progress.due() and not progress.due()
    progress.add(2)
    assert progress.due()
