"""Measurements -> results.json, results.md and pictures: tables with intervals, and the verdict on each claim."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.report.page import git_commit, versions
from pipeline.settings import Settings
from pipeline.storage.files import read_json, write_bytes, write_json

from .plots import figure6, figure_samplers, figure_tables
from .protocol import Key, Measurement, folder_of
from .tables import Measured, claims_of, read_measured, tables_of

HEAD = (
    "| {first} | FD (lower is better) | by seed | latent error | motion, generated / true | first frame "
    "| inception score |\n"
    "|---|---|---|---|---|---|---|\n"
)
NUMBERS = ("latent_error", "motion_ratio", "psnr_first_frame", "prior_error")
WHOLE = ("saf", "priors", "leakage")  # experiments with a picture of their table


def write_page(settings: Settings, planned: list[Measurement], there: list[Measurement]) -> dict[str, Any]:
    """Write clips.csv, measurements.csv, results.json, results.md and its pictures; return results.json.

    A measurement that is `planned`, but not `there` with every seed, is left out and named.
    """
    folder, ablate = folder_of(settings.run), settings.ablate
    found = read_measured(folder, ablate, there)
    lacking = sorted(
        {one.model.name + f" {one.sampler}" * bool(one.sampler) for one in planned if one.cell not in found.cells}
    )
    tables, claims, still = tables_of(settings, found), claims_of(settings, found), found.still.interval()
    pictures: dict[str, Figure] = {}
    if whole := [table for table in tables if table.experiment in WHOLE]:
        pictures["tables"] = figure_tables(whole, found)
    if any(table.experiment == "steps" for table in tables):
        pictures["figure6"] = figure6(ablate.seeds, found)
    if any(table.experiment == "samplers" for table in tables):
        pictures["samplers"] = figure_samplers(found)
    parts = [
        f"Commit {git_commit()}, {ablate.seeds} seeds, {ablate.clips} held-out clips; FD of the image itself, "
        f"standing still: {said(still)}. In brackets 95 % intervals."
        + (f" Not measured with every seed: {', '.join(lacking)}." if lacking else ""),
        f"### Claims\n\n{claim_rows(claims)}",
    ]
    parts += [f"### {table.title}\n\n{HEAD.format(first=table.first)}{rows(table.rows, found)}" for table in tables]
    for name, figure in pictures.items():
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=90)
        write_bytes(f"{folder}/{name}.png", stream.getvalue())
        parts.append(f"![{name}](ablation/{name}.png)")
    write_bytes(f"{folder}/results.md", ("\n\n".join(parts) + "\n").encode())
    write_csv(f"{folder}/measurements.csv", measurement_rows(found))
    write_csv(f"{folder}/clips.csv", clip_rows(folder, there))
    result = {
        "commit": git_commit(),
        "versions": versions(),
        "ablate": ablate.model_dump(mode="json"),
        "claims": claims,
        "still": still,
        "cells": cells_of(found),
    }
    write_json(f"{folder}/results.json", result)
    return result


def write_csv(address: str, rows: Iterable[list[Any]]) -> None:
    """Write a CSV file; the first row is its head."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    write_bytes(address, stream.getvalue().encode())


def measurement_rows(found: Measured) -> Iterator[list[Any]]:
    """One row for each measurement: a model and a seed, sampled one way."""
    yield ["model", "step", "sampler", "evaluations", "clips", "seed", "fd", *NUMBERS, "seconds_a_clip"]
    for key, one in found.cells.items():
        for seed, distance in enumerate(found.distances[key].seeds):
            row = [distance, *(np.nanmedian(one.numbers[name][seed]) for name in NUMBERS), found.seconds[key]]
            yield [*key, seed, *(f"{value:.5g}" for value in row)]


def clip_rows(folder: str, measured: list[Measurement]) -> Iterator[list[Any]]:
    """One row for each clip of each measurement, with the detector's features."""
    for index, one in enumerate(measured):
        found = read_json(f"{folder}/measured/{one.key}.json")
        if not index:
            features = [f"feature_{i}" for i in range(len(found["features"][0]))]
            yield ["model", "seed", "step", "sampler", "evaluations", "seconds_a_clip", "clip", *NUMBERS, *features]
        start = [one.model.name, one.model.seed, one.step, one.sampler, one.evaluations, f"{found['seconds']:.4f}"]
        for clip in range(one.clips):
            row = ["" if (value := found[name][clip]) is None else f"{value:.5g}" for name in NUMBERS]
            yield [*start, clip, *row, *found["features"][clip]]


def cells_of(found: Measured) -> list[dict[str, Any]]:
    """The cells in results.json."""
    names = ("model", "step", "sampler", "evaluations", "clips")
    return [
        dict(zip(names, key, strict=True))
        | {"fd": drawn.interval(), "fd_by_seed": drawn.seeds.tolist(), "seconds_a_clip": found.seconds[key]}
        for key, drawn in found.distances.items()
    ]


def rows(keys: list[tuple[str, Key]], found: Measured) -> str:
    """The rows of a table in Markdown."""
    lines = []
    for name, key in keys:
        drawn, one = found.distances[key], found.cells[key]
        lines.append(
            f"| {name} | {said(drawn.interval())} | {', '.join(f'{value:.2f}' for value in drawn.seeds)} | "
            f"{one.mean('latent_error'):.3f} | {one.median('motion_ratio'):.2f} | "
            f"{one.median('psnr_first_frame'):.1f} dB | {found.scores[key]:.2f} |"
        )
    return "\n".join(lines)


def claim_rows(claims: list[dict[str, Any]]) -> str:
    """The table of claims in Markdown."""
    lines = ["| claim | difference | by seed | | beside: latent error |", "|---|---|---|---|---|"]
    for one in claims:
        seeds = ", ".join(f"{value:+.2f}" for value in one["by_seed"])
        beside = said(one["latent_error"], "+", 3)
        lines.append(f"| {one['claim']} | {said(one['difference'], '+')} | {seeds} | {one['verdict']} | {beside} |")
    return "\n".join(lines)


def said(found: Any, sign: str = "", digits: int = 2) -> str:
    """A value with its interval: "1.23 (1.01 to 1.45)"."""
    value, low, high = (f"{found[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
