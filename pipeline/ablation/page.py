"""Measurements -> results.json, results.md and two pictures: tables with intervals, and what became of each claim."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from pipeline.ablation.intervals import Cell, Drawn, Draws, cell, frechet, make_draws, median_of, verdict
from pipeline.ablation.protocol import (
    SAMPLERS,
    SCRATCH,
    STARTS,
    TUNED,
    Measurement,
    figure6_steps,
    folder_of,
    start_name,
)
from pipeline.metrics.inception import inception_score
from pipeline.settings import Settings
from pipeline.storage import read_bytes, read_json, write_bytes, write_json

STILL = "still"
HEAD = (
    "| {first} | FD (lower is better) | by seed | latent error | motion, generated / true | first frame | inception score |\n"
    "|---|---|---|---|---|---|---|\n"
)
TABLE5 = (  # the claim, the model that should be lower, the one that it is compared with
    ("3. Table 5: bridge below VDT-I2V", "bridge", "vdt-i2v"),
    ("4. Table 5: FrameBridge-NP below replicated prior", "bridge-np", "bridge"),
    ("5. Table 5: neural prior, not conditioned, below replicated prior", "bridge-neural", "bridge"),
    ("6. Table 5: FrameBridge-NP below diffusion conditioned on F_eta", "bridge-np", "vdt-i2v-np"),
)
Key = tuple[str, int, str, int, int]  # model, step, sampler, evaluations, clips


class Measured(NamedTuple):
    """All cells, and what their differences are drawn with."""

    cells: dict[Key, Cell]
    scores: dict[Key, float]  # inception score, its mean over seeds
    seconds: dict[Key, float]  # of sampling one clip
    distances: dict[Key, Drawn]
    draws: dict[int, Draws]  # by number of clips
    still: Drawn

    def claim(self, text: str, one: Key, other: Key, of: Callable[[Key], Drawn] | None = None) -> dict[str, Any]:
        """The claim that `one` is below `other`."""
        of = of or self.distances.__getitem__
        difference = of(one) - of(other)
        found = difference.interval()
        return {"claim": text, "difference": found, "by_seed": difference.seeds.tolist(), "verdict": verdict(found)}


def read_measured(settings: Settings, measured: list[Measurement]) -> Measured:
    """Everything in ABLATION/measured, and its distances to the truth."""
    folder, seeds = folder_of(settings), settings.ablate.seeds
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        true = stored["features"]
    groups: dict[Key, list[dict[str, Any]]] = {}
    for one in measured:
        key = (one.model.name, one.step, one.sampler, one.evaluations, one.clips)
        groups.setdefault(key, []).append(read_json(f"{folder}/measured/{one.key}.json"))
    cells = {key: cell(found) for key, found in groups.items()}
    draws = {count: make_draws(settings.ablate.bootstrap, count, seeds) for count in {key[-1] for key in groups}}
    distances = {key: frechet(one, true[: key[-1]], draws[key[-1]]) for key, one in cells.items()}
    still = cell([read_json(f"{folder}/measured/{STILL}.json")])
    whole = make_draws(settings.ablate.bootstrap, len(true), 1)
    return Measured(
        cells,
        {
            key: float(np.mean([inception_score(np.array(one["probabilities"]))[0] for one in found]))
            for key, found in groups.items()
        },
        {key: float(np.mean([one["seconds"] for one in found])) for key, found in groups.items()},
        distances,
        draws,
        frechet(still, true, whole),
    )


def write_page(settings: Settings, measured: list[Measurement]) -> dict[str, Any]:
    """Write results.json, results.md, figure6.png and samplers.png; gives what results.json holds."""
    found, folder = read_measured(settings, measured), folder_of(settings)
    tables = tables_of(settings, found)
    claims = claims_of(settings, found)
    pictures = {"figure6.png": figure6, "samplers.png": figure_samplers}
    shown = [
        name
        for name, experiment in zip(pictures, ("steps", "samplers"), strict=True)
        if experiment in settings.ablate.experiments
    ]
    for name in shown:
        stream = io.BytesIO()
        pictures[name](settings, found).savefig(stream, format="png", dpi=100)
        write_bytes(f"{folder}/{name}", stream.getvalue())
    parts = [f"### {title}\n\n{HEAD.format(first=first)}{rows(keys, found)}" for title, first, keys in tables]
    parts += [f"![{name.removesuffix('.png')}](ablation/{name})" for name in shown]
    parts.append(f"### Claims\n\n{claim_rows(claims)}")
    still = found.still.interval()
    parts.append(f"FD of the image itself, standing still: {said(still)}.\n")
    write_bytes(f"{folder}/results.md", "\n\n".join(parts).encode())
    cells = [
        {
            **dict(zip(("model", "step", "sampler", "evaluations", "clips"), key, strict=True)),
            "fd": drawn.interval(),
            "fd_by_seed": drawn.seeds.tolist(),
            "seconds_a_clip": found.seconds[key],
        }
        for key, drawn in found.distances.items()
    ]
    result = {"cells": cells, "claims": claims, "still": still}
    write_json(f"{folder}/results.json", result)
    return result


def tables_of(settings: Settings, found: Measured) -> list[tuple[str, str, list[tuple[str, Key]]]]:
    """Title, first column's name, and rows (name, cell) of every table."""
    ablate, evaluations, last = settings.ablate, settings.sample.steps, settings.train.steps
    tables: list[tuple[str, str, list[tuple[str, Key]]]] = []

    def usual(model: str, step: int) -> Key:
        return (model, step, "", evaluations, ablate.clips)

    if "saf" in ablate.experiments:
        tables.append(
            ("Table 4: fine-tuned from a diffusion model", "model", [(name, usual(name, last)) for name in TUNED])
        )
    if "priors" in ablate.experiments:
        scratch = settings.prior.train.steps
        tables.append(("Table 5: priors, from scratch", "model", [(name, usual(name, scratch)) for name in SCRATCH]))
    if "steps" in ablate.experiments:
        tables.append(
            (
                "Figure 6: quality against steps",
                "model, steps",
                [(f"{name}, {s}", usual(name, s)) for name in TUNED for s in figure6_steps(settings)],
            )
        )
    if "samplers" in ablate.experiments:
        named = {name for samplers in SAMPLERS.values() for name in samplers}
        keys = [key for key in found.cells if key[2] in named]
        tables.append(
            (
                f"Figures 7 and 8: samplers, {ablate.sampler_clips} clips",
                "model, sampler, evaluations, seconds a clip",
                [(f"{k[0]}, {k[2]}, {k[3]}, {found.seconds[k]:.3f} s", k) for k in keys],
            )
        )
    if "leakage" in ablate.experiments:
        keys = [
            usual("diffusion", last),
            usual("timenoise", last),
            *(key for key in found.cells if key[2].startswith("M ")),
        ]
        named_rows = [(f"{key[0]}{', ' if key[2] else ''}{key[2]}", key) for key in keys]
        tables.append(("CIL: TimeNoise and Analytic-Init", "model, start", named_rows))
    return tables


def claims_of(settings: Settings, found: Measured) -> list[dict[str, Any]]:
    """The claims of docs/ablation.md, as far as their experiments are among ablate.experiments."""
    ablate, last = settings.ablate, settings.train.steps

    def usual(model: str, step: int, sampler: str = "") -> Key:
        return (model, step, sampler, settings.sample.steps, ablate.clips)

    pairs: list[tuple[str, Key, Key]] = []
    if "saf" in ablate.experiments:
        pairs.append(("1. Table 4: SAF below no SAF", usual("saf", last), usual("no-saf", last)))
        pairs.append(("2. Table 4: SAF below diffusion", usual("saf", last), usual("diffusion", last)))
    if "priors" in ablate.experiments:
        scratch = settings.prior.train.steps
        for text, one, other in TABLE5:
            pairs.append((text, usual(one, scratch), usual(other, scratch)))
    if "steps" in ablate.experiments:
        for step in figure6_steps(settings):
            text = f"7. Figure 6: SAF below no SAF after {step} steps"
            pairs.append((text, usual("saf", step), usual("no-saf", step)))
    if "samplers" in ablate.experiments:
        for count in ablate.evaluations:
            bridge: Key = ("saf", last, "sde_first_order", count, ablate.sampler_clips)
            diffusion: Key = ("diffusion", last, "ddim", count, ablate.sampler_clips)
            pairs.append((f"8. Figures 7, 8: SAF bridge below diffusion at {count} evaluations", bridge, diffusion))
    if "leakage" in ablate.experiments:
        for start in STARTS:
            analytic, plain = (usual("diffusion", last, start_name(start, how)) for how in (True, False))
            pairs.append((f"10. CIL: at M = {start:g} Analytic-Init below plain noise", analytic, plain))
    claims = [found.claim(*pair) for pair in pairs if {*pair[1:]} <= found.cells.keys()]
    if "leakage" in ablate.experiments:

        def motion(which: Key) -> Drawn:
            return median_of(found.cells[which], "motion_ratio", found.draws[which[-1]])

        text = "9. CIL: motion without TimeNoise below that with it"
        claims.append(found.claim(text, usual("diffusion", last), usual("timenoise", last), motion))
    return sorted(claims, key=lambda claim: int(claim["claim"].split(".")[0]))


def rows(keys: list[tuple[str, Key]], found: Measured) -> str:
    lines = []
    for name, key in keys:
        drawn, one = found.distances[key], found.cells[key]
        lines.append(
            f"| {name} | {said(drawn.interval())} | {', '.join(f'{value:.2f}' for value in drawn.seeds)} | "
            f"{one.mean('latent_error'):.3f} | {one.median('motion_ratio'):.2f} | {one.median('psnr_first_frame'):.1f} dB | "
            f"{found.scores[key]:.2f} |"
        )
    return "\n".join(lines)


def claim_rows(claims: list[dict[str, Any]]) -> str:
    lines = ["| claim | difference | by seed | |", "|---|---|---|---|"]
    for one in claims:
        seeds = ", ".join(f"{value:+.2f}" for value in one["by_seed"])
        lines.append(f"| {one['claim']} | {said(one['difference'], '+')} | {seeds} | {one['verdict']} |")
    return "\n".join(lines)


def said(found: Any, sign: str = "") -> str:
    return f"{found['value']:{sign}.2f} ({found['low']:{sign}.2f} to {found['high']:{sign}.2f})"


def figure6(settings: Settings, found: Measured) -> Figure:
    """FD against training steps, with intervals."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in TUNED:
        keys = sorted((key for key in found.cells if key[0] == name and not key[2]), key=lambda key: key[1])
        _line(axes, [key[1] for key in keys], [found.distances[key] for key in keys], name)
    axes.set(
        xlabel="training steps", ylabel="FD", yscale="log", title=f"fine-tuned models, {settings.ablate.seeds} seeds"
    )
    axes.legend(frameon=False)
    return figure


def figure_samplers(settings: Settings, found: Measured) -> Figure:
    """FD of every sampler against evaluations of the network, and against seconds a clip."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for model, samplers in SAMPLERS.items():
        for sampler in samplers:
            keys = sorted((key for key in found.cells if key[0] == model and key[2] == sampler), key=lambda key: key[3])
            drawn = [found.distances[key] for key in keys]
            _line(left, [key[3] for key in keys], drawn, f"{model}: {sampler}")
            _line(right, [found.seconds[key] for key in keys], drawn, "")
    left.set(xlabel="evaluations of the network", ylabel="FD", yscale="log", xscale="log")
    right.set(xlabel="seconds a clip, one thread", xscale="log")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return figure


def _line(axes: Any, x: list[float], drawn: list[Drawn], label: str) -> None:
    found = [one.interval() for one in drawn]
    values = np.array([one["value"] for one in found])
    spread = np.array([[max(0.0, one["value"] - one["low"]), max(0.0, one["high"] - one["value"])] for one in found]).T
    axes.errorbar(x, values, yerr=spread, marker="o", markersize=3, capsize=2, linewidth=1.2, label=label or None)
