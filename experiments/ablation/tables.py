"""Measurements -> cells, tables and claims, as plain data."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.metrics.inception import inception_score
from pipeline.settings import AblateSettings, Settings
from pipeline.storage.files import read_bytes, read_json

from .intervals import Cell, Drawn, Draws, cell, frechet, make_draws, of_clips, verdict
from .protocol import SAMPLERS, SCRATCH, STARTS, STILL, TUNED, Key, Measurement, figure6_steps, start_name

TABLE5 = (  # the claim, the model that should be lower, the one that it is compared with
    ("3. Table 5: bridge below VDT-I2V", "bridge", "vdt-i2v"),
    ("4. Table 5: FrameBridge-NP below replicated prior", "bridge-np", "bridge"),
    ("5. Table 5: neural prior, not conditioned, below replicated prior", "bridge-neural", "bridge"),
    ("6. Table 5: FrameBridge-NP below diffusion conditioned on F_eta", "bridge-np", "vdt-i2v-np"),
)


class Measured(NamedTuple):
    """All cells, their figures, and the draws that their differences are taken with."""

    cells: dict[Key, Cell]
    scores: dict[Key, float]  # inception score, its mean over seeds
    seconds: dict[Key, float]  # of sampling one clip
    distances: dict[Key, Drawn]
    draws: dict[int, Draws]  # by number of clips
    still: Drawn

    def claim(self, text: str, one: Key, other: Key, of: Callable[[Key], Drawn] | None = None) -> dict[str, Any]:
        """The claim that `one` is below `other`; the difference of mean latent errors beside it decides nothing."""
        of = of or self.distances.__getitem__
        difference = of(one) - of(other)
        found = difference.interval()
        result = {"claim": text, "difference": found, "by_seed": difference.seeds.tolist(), "verdict": verdict(found)}
        return result | {"latent_error": (self.latent_error(one) - self.latent_error(other)).interval()}

    def motion(self, which: Key) -> Drawn:
        """Median over clips of the motion against that of the true clip."""
        return of_clips(self.cells[which], "motion_ratio", self.draws[which[-1]], np.nanmedian)

    def latent_error(self, which: Key) -> Drawn:
        """Mean over clips of the latent error."""
        return of_clips(self.cells[which], "latent_error", self.draws[which[-1]], np.nanmean)


def read_measured(folder: str, ablate: AblateSettings, measured: list[Measurement]) -> Measured:
    """Everything that was measured with all seeds, and its distances to the true clips."""
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        true = stored["features"]
    groups: dict[Key, list[dict[str, Any]]] = {}
    for one in measured:
        groups.setdefault(one.cell, []).append(read_json(f"{folder}/measured/{one.key}.json"))
    groups = {key: found for key, found in groups.items() if len(found) == ablate.seeds}
    cells = {key: cell(found) for key, found in groups.items()}
    draws = {count: make_draws(ablate.bootstrap, count, ablate.seeds) for count in {key[-1] for key in groups}}
    scores = {
        key: float(np.mean([inception_score(np.array(one["probabilities"]))[0] for one in found]))
        for key, found in groups.items()
    }
    seconds = {key: float(np.mean([one["seconds"] for one in found])) for key, found in groups.items()}
    distances = {key: frechet(one, true[: key[-1]], draws[key[-1]]) for key, one in cells.items()}
    still = cell([read_json(f"{folder}/measured/{STILL}.json")])
    still_distance = frechet(still, true, make_draws(ablate.bootstrap, len(true), 1))
    return Measured(cells, scores, seconds, distances, draws, still_distance)


class Table(NamedTuple):
    """A table of an experiment: its title, the head of its first column, and a name and a cell for each row."""

    experiment: str
    title: str
    first: str
    rows: list[tuple[str, Key]]


def tables_of(settings: Settings, found: Measured) -> list[Table]:
    """The tables of ablate.experiments, with the cells that were measured."""
    ablate, last, usual = settings.ablate, settings.train.steps, _usual(settings)
    named = {name for samplers in SAMPLERS.values() for name in samplers}
    samplers = [(f"{k[0]}, {k[2]}, {k[3]}, {found.seconds[k]:.3f} s", k) for k in found.cells if k[2] in named]
    starts = [(f"{k[0]}, {k[2]}", k) for k in found.cells if k[2].startswith("M ")]
    tuned = [(name, usual(name, last)) for name in TUNED]
    scratch = [(name, usual(name, settings.prior.train.steps)) for name in SCRATCH]
    noised = [(name, usual(name, last)) for name in ("diffusion", "timenoise")]
    steps = [(f"{name}, {step}", usual(name, step)) for name in TUNED for step in figure6_steps(last)]
    figures78 = f"Figures 7 and 8: samplers, {ablate.sampler_clips} clips"
    every = [
        Table("saf", "Table 4: fine-tuned from a diffusion model", "model", tuned),
        Table("priors", "Table 5: priors, from scratch", "model", scratch),
        Table("leakage", "CIL: TimeNoise and Analytic-Init", "model, start", noised + starts),
        Table("steps", "Figure 6: quality against steps", "model, steps", steps),
        Table("samplers", figures78, "model, sampler, evaluations, seconds a clip", samplers),
    ]
    there = [table._replace(rows=[row for row in table.rows if row[1] in found.cells]) for table in every]
    return [table for table in there if table.rows and table.experiment in ablate.experiments]


def _usual(settings: Settings) -> Callable[..., Key]:
    """usual(model, step, sampler="") gives the cell of a model at the paper's number of evaluations."""
    return lambda model, step, sampler="": (model, step, sampler, settings.sample.steps, settings.ablate.clips)


def claims_of(settings: Settings, found: Measured) -> list[dict[str, Any]]:
    """The claims of docs/ablation.md whose cells were measured, in their order."""
    ablate, last, scratch = settings.ablate, settings.train.steps, settings.prior.train.steps
    usual = _usual(settings)
    claims: dict[str, list[tuple[str, Key, Key]]] = {
        "saf": [
            ("1. Table 4: SAF below no SAF", usual("saf", last), usual("no-saf", last)),
            ("2. Table 4: SAF below diffusion", usual("saf", last), usual("diffusion", last)),
        ],
        "priors": [(text, usual(one, scratch), usual(other, scratch)) for text, one, other in TABLE5],
        "steps": [
            (f"7. Figure 6: SAF below no SAF after {step} steps", usual("saf", step), usual("no-saf", step))
            for step in figure6_steps(last)
        ],
        "samplers": [
            (
                f"8. Figures 7, 8: SAF bridge below diffusion at {count} evaluations",
                ("saf", last, "sde_first_order", count, ablate.sampler_clips),
                ("diffusion", last, "ddim", count, ablate.sampler_clips),
            )
            for count in ablate.evaluations
        ],
        "leakage": [
            (
                f"10. CIL: at M = {start:g} Analytic-Init below plain noise",
                usual("diffusion", last, start_name(start, True)),
                usual("diffusion", last, start_name(start, False)),
            )
            for start in STARTS
        ],
    }
    pairs = [pair for experiment in ablate.experiments for pair in claims[experiment]]
    made = [found.claim(*pair) for pair in pairs if {*pair[1:]} <= found.cells.keys()]
    motion = ("9. CIL: motion without TimeNoise below that with it", usual("diffusion", last), usual("timenoise", last))
    if "leakage" in ablate.experiments and {*motion[1:]} <= found.cells.keys():
        made.append(found.claim(*motion, found.motion))
    return sorted(made, key=lambda claim: int(claim["claim"].split(".")[0]))
