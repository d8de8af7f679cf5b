"""The picture of a run."""

import io

import numpy as np
from PIL import Image

from pipeline.train.report.learning_curve import learning_curve_png, smoothed
from pipeline.train.report.rows import Row, column


def test_the_picture_shows_losses_and_where_the_time_went() -> None:
    shares: Row = {"data": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}
    losses: list[Row] = [{"step": 0.0, "validation_loss": 1.0}]
    losses += [{"step": float(step), "loss": 1 / step} for step in range(1, 30)]
    plain = np.asarray(Image.open(io.BytesIO(learning_curve_png(losses, "a run"))).convert("RGB"))
    timed = [row if not row.get("loss") else row | shares for row in losses]
    full = np.asarray(Image.open(io.BytesIO(learning_curve_png(timed, "a run"))).convert("RGB"))
    assert plain.shape[2] == full.shape[2] == 3
    coloured = [(picture.max(2) - picture.min(2) > 60).mean() for picture in (plain, full)]
    assert 0 < coloured[0] < 0.02, "lines"
    assert coloured[1] > 0.1, "areas"


def test_blanks_are_left_out_and_the_mean_does_not_lag() -> None:
    assert column([{"step": 1.0, "loss": None}, {"step": 2.0, "loss": 3.0}], "loss") == [(2.0, 3.0)]
    line = [(float(step), 2.0 * step) for step in range(100)]
    assert smoothed(line) == line
