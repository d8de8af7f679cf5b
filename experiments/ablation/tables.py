"""Measurements -> cells, tables and claims: what is in each, as plain data."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics.inception import inception_score
from pipeline.settings import Settings
from pipeline.storage.files import read_bytes, read_json

from .intervals import Cell, Drawn, Draws, cell, frechet, make_draws, of_clips, verdict
from .protocol import SAMPLERS, SCRATCH, STARTS, STILL, TUNED, Key, Measurement, figure6_steps, folder_of, start_name

TABLE5 = (  # the claim, the model that should be lower, the one that it is compared with
    ("3. Table 5: bridge below VDT-I2V", "bridge", "vdt-i2v"),
    ("4. Table 5: FrameBridge-NP below replicated prior", "bridge-np", "bridge"),
    ("5. Table 5: neural prior, not conditioned, below replicated prior", "bridge-neural", "bridge"),
    ("6. Table 5: FrameBridge-NP below diffusion conditioned on F_eta", "bridge-np", "vdt-i2v-np"),
)


class Measured(NamedTuple):
    """All cells, and what their differences are drawn with."""

    cells: dict[Key, Cell]
    scores: dict[Key, float]  # inception score, its mean over seeds
    seconds: dict[Key, float]  # of sampling one clip
    distances: dict[Key, Drawn]
    draws: dict[int, Draws]  # by number of clips
    still: Drawn

    def claim(self, text: str, one: Key, other: Key, of: Callable[[Key], Drawn] | None = None) -> dict[str, Any]:
        """The claim that `one` is below `other`; beside it the difference of their mean latent errors, which decides nothing."""
        of = of or self.distances.__getitem__
        difference = of(one) - of(other)
        found = difference.interval()
        result = {"claim": text, "difference": found, "by_seed": difference.seeds.tolist(), "verdict": verdict(found)}
        return result | {"latent_error": (self.latent_error(one) - self.latent_error(other)).interval()}

    def latent_error(self, which: Key) -> Drawn:
        return of_clips(self.cells[which], "latent_error", self.draws[which[-1]], np.nanmean)


def read_measured(settings: Settings, measured: list[Measurement]) -> Measured:
    """What was measured with every seed, and its distances to the truth."""
    folder, seeds = folder_of(settings), settings.ablate.seeds
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        true = stored["features"]
    groups: dict[Key, list[dict[str, Any]]] = {}
    for one in measured:
        groups.setdefault(one.cell, []).append(read_json(f"{folder}/measured/{one.key}.json"))
    groups = {key: found for key, found in groups.items() if len(found) == seeds}
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


class Table(NamedTuple):
    """Of an experiment: a title, what the first column is, and of each row a name and the cell."""

    experiment: str
    title: str
    first: str
    rows: list[tuple[str, Key]]


def tables_of(settings: Settings, found: Measured) -> list[Table]:
    """The tables of the experiments of ablate.experiments, with the cells that were measured."""
    ablate, evaluations, last = settings.ablate, settings.sample.steps, settings.train.steps

    def usual(model: str, step: int) -> Key:
        return (model, step, "", evaluations, ablate.clips)

    named = {name for samplers in SAMPLERS.values() for name in samplers}
    samplers = [(f"{k[0]}, {k[2]}, {k[3]}, {found.seconds[k]:.3f} s", k) for k in found.cells if k[2] in named]
    starts = [(f"{k[0]}, {k[2]}", k) for k in found.cells if k[2].startswith("M ")]
    steps = [(f"{name}, {step}", usual(name, step)) for name in TUNED for step in figure6_steps(settings)]
    every = [
        Table(
            "saf", "Table 4: fine-tuned from a diffusion model", "model", [(name, usual(name, last)) for name in TUNED]
        ),
        Table(
            "priors",
            "Table 5: priors, from scratch",
            "model",
            [(name, usual(name, settings.prior.train.steps)) for name in SCRATCH],
        ),
        Table(
            "leakage",
            "CIL: TimeNoise and Analytic-Init",
            "model, start",
            [*((name, usual(name, last)) for name in ("diffusion", "timenoise")), *starts],
        ),
        Table("steps", "Figure 6: quality against steps", "model, steps", steps),
        Table(
            "samplers",
            f"Figures 7 and 8: samplers, {ablate.sampler_clips} clips",
            "model, sampler, evaluations, seconds a clip",
            samplers,
        ),
    ]
    there = [table._replace(rows=[row for row in table.rows if row[1] in found.cells]) for table in every]
    return [table for table in there if table.rows and table.experiment in ablate.experiments]


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
            return of_clips(found.cells[which], "motion_ratio", found.draws[which[-1]], np.nanmedian)

        text, pair = (
            "9. CIL: motion without TimeNoise below that with it",
            (usual("diffusion", last), usual("timenoise", last)),
        )
        if {*pair} <= found.cells.keys():
            claims.append(found.claim(text, *pair, motion))
    return sorted(claims, key=lambda claim: int(claim["claim"].split(".")[0]))
