"""Loss curves as SVG that takes the page's text colour, so that it is right in light and in dark."""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ..train.report.learning_curve import draw_losses
from ..train.report.rows import Row

INK = "#010203"  # stands for the page's text colour, which matplotlib cannot name


def loss_curve(rows: list[Row], name: str) -> str:
    """An <svg> of the columns "loss" and "validation_loss" against steps, loss on a logarithmic axis."""
    settings: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    settings |= {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        draw_losses(figure.subplots(), rows)
        return to_svg(figure)


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
