"""Loss curves as SVG in the page's text colour, for light and dark pages."""

import io
import re
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from ..train.report.learning_curve import draw_losses
from ..train.report.rows import Row, column

INK = "#010203"  # stands for the page's text colour, which matplotlib cannot name
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {**dict.fromkeys(INKED, INK), "svg.fonttype": "none", "font.size": 9}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def loss_curve(rows: list[Row], name: str) -> Markup:
    """An <svg> of "loss" and "validation_loss" against steps; "" without losses.

    It refers to nothing outside itself. Curves of different `name` on one page share no ids.
    """
    if not column(rows, "loss"):
        return Markup()
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        draw_losses(figure.subplots(), rows)
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue().replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)  # of the <svg> element itself: the page sizes it
    return Markup(svg.replace("<svg ", '<svg aria-hidden="true" ', 1))
