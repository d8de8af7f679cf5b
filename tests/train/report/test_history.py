"""history.csv tells every step once, whatever happened."""

from pathlib import Path

from pipeline.train.report.history import HISTORY, History, duration
from pipeline.train.report.rows import read_history


def test_rows_survive_and_later_ones_are_dropped_on_resume(tmp_path: Path) -> None:
    first = History(str(tmp_path), 0, 10)
    first.add(0, validation_loss=2.0)
    for step in range(1, 8):
        first.add(step, loss=1.0 / step, learning_rate=1e-3, gradient_norm=None, samples_per_s=10.0 * step)
    first.close()
    assert len(read_history(f"{tmp_path}/{HISTORY}")) == 8
    again = History(str(tmp_path), 4, 10)
    again.add(5, loss=0.5)
    again.close()
    rows = read_history(f"{tmp_path}/{HISTORY}")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[0] | {"seconds": None} == dict.fromkeys(rows[0], None) | {"step": 0.0, "validation_loss": 2.0}
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)  # type: ignore[type-var]
    summary = again.summary()
    assert summary["final_loss"] == 0.5 and summary["validation_losses"] == [[0, 2.0]]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_start_from_nothing_writes_all_rows_anew(tmp_path: Path) -> None:
    for _ in range(2):
        history = History(str(tmp_path), 0, 10)
        history.add(0, validation_loss=2.0)
        history.close()
    assert len(read_history(f"{tmp_path}/{HISTORY}")) == 1


def test_a_line_shows_progress_and_time_left(tmp_path: Path) -> None:
    history = History(str(tmp_path), 0, 10)
    line = history.line({"step": 5, "loss": 0.25, "validation_loss": None, "samples_per_s": 12.0})
    assert line.startswith("step 5/10, loss 0.2500, 12.0 clips/s, ") and line.endswith("to go")
    history.close()


def test_durations_read_in_hours_minutes_and_seconds() -> None:
    assert [duration(s) for s in (7.2, 61, 3725)] == ["7 s", "1 min 1 s", "1 h 2 min"]
