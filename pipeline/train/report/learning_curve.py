"""The learning curve: losses against steps, as a picture in the run's folder and in the report."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...runtime.metrics import PARTS
from .rows import Row, Series, column

TRAIN, VALIDATION = "#7a8ca3", "#e07b39"  # readable on white and on black
WINDOWS = 20  # the line over the raw training loss is a mean over about so large a part of it


def learning_curve_png(rows: list[Row], title: str) -> bytes:
    """A PNG of a history: losses, and beneath them where the time went, both against steps."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, times = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    draw_losses(losses, rows)
    losses.set(title=title, xlabel="")
    timed = [row for row in rows if row.get(PARTS[0]) is not None]
    if timed:
        shares = [[row.get(part) or 0.0 for row in timed] for part in PARTS]
        times.stackplot([row["step"] or 0 for row in timed], *shares, labels=PARTS, step="pre")
        times.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    times.set(xlabel="step", ylabel="share of time", ylim=(0, 1))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def draw_losses(axes: Axes, rows: list[Row]) -> None:
    """The columns "loss" and "validation_loss" against steps, loss on a logarithmic axis."""
    loss, validation = column(rows, "loss"), column(rows, "validation_loss")
    if loss:
        axes.plot(*zip(*loss, strict=True), color=TRAIN, alpha=0.35, linewidth=1)
        axes.plot(*zip(*smoothed(loss), strict=True), color=TRAIN, linewidth=1.8, label="training (smoothed)")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=VALIDATION, marker="o", markersize=3, label="held-out clips")
    if all(value > 0 for _, value in [*loss, *validation]):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.15, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def smoothed(series: Series) -> Series:
    """The mean of each value and its neighbours on both sides, so that the line does not lag behind."""
    reach = max(1, len(series) // (2 * WINDOWS))
    result = []
    for index, (step, _) in enumerate(series):
        side = min(reach, index, len(series) - 1 - index)  # as many on either side
        near = [value for _, value in series[index - side : index + side + 1]]
        result.append((step, sum(near) / len(near)))
    return result
