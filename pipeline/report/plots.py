"""Loss curves as SVG that takes the page's text colour, so that it is right in light and in dark."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from pipeline.train.history import Row

INK = "#010203"  # stands for the page's text colour, which matplotlib cannot name
TRAIN, VALIDATION = "#7a8ca3", "#e07b39"  # readable on white and on black
WINDOWS = 20  # the line over the raw training loss is a mean over about so large a part of it


Series = list[tuple[float, float]]  # (step, value)


def column(rows: list[Row], name: str) -> Series:
    """The values of one column of a history, where it has any."""
    pairs = ((row.get("step"), row.get(name)) for row in rows)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def loss_curve(rows: list[Row], name: str) -> str:
    """An <svg> of the columns "loss" and "validation_loss" against steps, loss on a logarithmic axis."""
    settings: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    settings |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.subplots()
        loss, validation = column(rows, "loss"), column(rows, "validation_loss")
        if loss:
            axes.plot(*zip(*loss, strict=True), color=TRAIN, alpha=0.35, linewidth=1)
            axes.plot(*zip(*smoothed(loss), strict=True), color=TRAIN, linewidth=1.8, label="training (smoothed)")
        if validation:
            axes.plot(
                *zip(*validation, strict=True), color=VALIDATION, marker="o", markersize=3, label="held-out clips"
            )
        if all(value > 0 for _, value in [*loss, *validation]):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="step", ylabel="loss")
        axes.grid(alpha=0.15, which="both", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return to_svg(figure)


def smoothed(series: Series) -> Series:
    """The mean of each value and its neighbours on both sides, so that the line does not lag behind."""
    reach = max(1, len(series) // (2 * WINDOWS))
    result = []
    for index, (step, _) in enumerate(series):
        side = min(reach, index, len(series) - 1 - index)  # as many on either side
        near = [value for _, value in series[index - side : index + side + 1]]
        result.append((step, sum(near) / len(near)))
    return result


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element that refers to nothing outside itself."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*" ', r"\1\2 ", text, count=1)
    return re.sub(r"<svg ", '<svg aria-hidden="true" ', text, count=1)
