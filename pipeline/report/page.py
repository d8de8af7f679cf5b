"""RUN -> summary.json and report.html: the results of every stage on one page that opens offline."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jinja2

from ..errors import UserError
from ..runtime.progress import duration
from ..settings import ROOT, Settings
from ..storage.files import read_json, write_bytes, write_json
from ..train.report.rows import read_history
from .plots import loss_curve
from .videos import SHOWN, data_address, read_items

SAMPLERS = {
    "sde_first_order": "first-order SDE sampler",
    "ode_first_order": "first-order ODE sampler",
    "ode_second_order": "second-order ODE sampler",
    "stochastic_heun": "stochastic Heun sampler",
    "dbim": "DBIM",
    "ddim": "DDIM",
}
PACKAGES = ("ray", "torch", "deepspeed", "diffusers", "av", "decord", "webdataset", "pyarrow")
PUBLISHED = {  # numbers of the paper's abstract, to compare with where the protocol is kept
    "fvd": {
        "UCF-101, FrameBridge": 122,
        "UCF-101, its diffusion counterpart": 171,
        "MSR-VTT zero-shot, FrameBridge": 95,
        "MSR-VTT zero-shot, its diffusion counterpart": 192,
    }
}
STAGES = {
    "cache": "caching latents",
    "prior": "neural prior",
    "finetune": "fine-tuning",
    "samples": "sampling",
    "evaluate": "evaluation",
    "bivdiff": "BIVDiff",
}
# Name in summary.json -> metric and statistic: the median of a PSNR, whose outliers spoil a mean; the mean of errors
HEADLINES = {
    "psnr_first_frame_median": ("psnr_first_frame", "median"),
    "motion_ratio_median": ("motion_ratio", "median"),
    "motion_ratio_quartile1": ("motion_ratio", "quartile1"),
    "motion_ratio_quartile3": ("motion_ratio", "quartile3"),
    "prior_latent_error": ("prior_latent_error", "mean"),
    "replicated_latent_error": ("replicated_latent_error", "mean"),
}
StageRecords = dict[str, dict[str, Any] | None]


def write_report(settings: Settings) -> dict[str, Any]:
    """Write RUN/summary.json and RUN/report.html. Returns the summary. Raises UserError if no stage has finished."""
    started = time.monotonic()
    run = settings.run.folder
    stages = read_stages(run, settings.cache_path)
    if not any(stages.values()):
        raise UserError(
            f"{run}: no stage has finished there; run jobs/cache_latents.py, train_prior.py, finetune.py and sample.py,"
            " or give --run.name and --run.storage of a run that has"
        )
    summary = combine(stages)
    page = template().render(
        settings=settings,
        yaml=settings.to_yaml(),
        stages=stages,
        names=STAGES,
        published=PUBLISHED,
        samplers=SAMPLERS,
        summary=summary,
        items=read_items(f"{run}/samples", stages["samples"]),
        shown=SHOWN,
        smoothed=read_items(f"{run}/bivdiff", stages["bivdiff"]),
        curves={name: loss_curve(read_history(f"{run}/{name}/history.csv"), name) for name in ("prior", "finetune")},
        sheet=data_address(f"{settings.cache_path}/contact_sheet.png"),
        versions=versions(),
        made=time.strftime("%d %B %Y, %H:%M"),
    )
    summary["timings"]["report"] = time.monotonic() - started
    summary["report"] = f"{run}/report.html"
    write_bytes(f"{run}/report.html", page.encode())
    write_json(f"{run}/summary.json", summary)
    return summary


def read_stages(run_folder: str, cache_path: str) -> StageRecords:
    """Each stage's summary.json, or metrics.json of evaluate, by name; None if it has not run. Raises UserError."""
    addresses = {name: f"{run_folder}/{name}/summary.json" for name in STAGES}
    addresses |= {"cache": f"{cache_path}/summary.json", "evaluate": f"{run_folder}/evaluate/metrics.json"}
    stages: StageRecords = {}
    for name, address in addresses.items():
        try:
            stages[name] = read_json(address)
        except (FileNotFoundError, NotADirectoryError):
            stages[name] = None
        except ValueError as error:
            raise UserError(f"{address}: not valid JSON ({error}); run that stage again") from error
    return stages


def combine(stages: StageRecords) -> dict[str, Any]:
    """RUN/summary.json: the headline numbers first (null where not measured), then each stage's own summary."""
    samples = stages["samples"] or {}
    metrics = samples.get("metrics", {})
    numbers = {name: metrics.get(metric, {}).get(statistic) for name, (metric, statistic) in HEADLINES.items()}
    return numbers | {
        "held_out_inputs": samples.get("count") if samples.get("source") == "held_out" else None,
        "timings": {name: stage["seconds"] for name, stage in stages.items() if stage and "seconds" in stage},
        "commit": git_commit(),
        "stages": stages,
    }


def headline(summary: dict[str, Any]) -> str:
    """The headline numbers of a summary, one a line, for the terminal."""
    numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    return "\n".join(f"  {name:26} {value:.4g}" for name, value in numbers.items())


def git_commit() -> str:
    """FRAMEBRIDGE_COMMIT, which a submitted job needs, or what git says, or "unknown"."""
    if named := os.environ.get("FRAMEBRIDGE_COMMIT"):
        return named
    command = ["git", "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def template() -> jinja2.Template:
    """page.html. It escapes all values but the curves, which are drawn here."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "number": number}
    return environment.get_template("page.html")


def number(value: float | None, digits: int = 2) -> str:
    """The value rounded to `digits` decimals; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"
