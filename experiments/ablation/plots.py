"""The pictures of the ablation's page."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .intervals import Drawn
from .protocol import SAMPLERS, TUNED
from .tables import Measured, Table


def figure_tables(tables: list[Table], found: Measured) -> Figure:
    """FD of the rows of some tables: the interval, and a dot for each seed."""
    figure = Figure(figsize=(5 * len(tables), 3.2), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        for height, (_, key) in enumerate(reversed(table.rows)):
            drawn = found.distances[key]
            interval = drawn.interval()
            axes.plot([interval["low"], interval["high"]], [height, height], color="#7a8ca3", linewidth=4, alpha=0.5)
            axes.plot(drawn.seeds, [height] * len(drawn.seeds), "o", color="#e07b39", markersize=4)
        axes.set_yticks(range(len(table.rows)), [name for name, _ in reversed(table.rows)])
        axes.set(title=table.title, xlabel="FD", ylim=(-0.5, len(table.rows) - 0.5))
        axes.grid(alpha=0.15, axis="x")
    return figure


def figure6(seeds: int, found: Measured) -> Figure:
    """FD against training steps, with intervals."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in TUNED:
        keys = sorted((key for key in found.cells if key[0] == name and not key[2]), key=lambda key: key[1])
        if keys:
            line(axes, [key[1] for key in keys], [found.distances[key] for key in keys], name)
    axes.set(xlabel="training steps", ylabel="FD", yscale="log", title=f"fine-tuned models, {seeds} seeds")
    axes.legend(frameon=False)
    return figure


def figure_samplers(found: Measured) -> Figure:
    """FD of every sampler against evaluations of the network, and against seconds a clip."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for model, samplers in SAMPLERS.items():
        for sampler in samplers:
            keys = sorted((key for key in found.cells if key[0] == model and key[2] == sampler), key=lambda key: key[3])
            drawn = [found.distances[key] for key in keys]
            if drawn:
                line(left, [key[3] for key in keys], drawn, f"{model}: {sampler}")
                line(right, [found.seconds[key] for key in keys], drawn, "")
    left.set(xlabel="evaluations of the network", ylabel="FD", yscale="log", xscale="log")
    right.set(xlabel="seconds a clip, one thread", xscale="log")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def line(axes: Any, x: list[float], drawn: list[Drawn], label: str) -> None:
    """Draw statistics at `x` with their intervals."""
    found = [one.interval() for one in drawn]
    values = np.array([one["value"] for one in found])
    spread = np.array([[max(0.0, one["value"] - one["low"]), max(0.0, one["high"] - one["value"])] for one in found]).T
    axes.errorbar(x, values, yerr=spread, marker="o", markersize=3, capsize=2, linewidth=1.2, label=label or None)
