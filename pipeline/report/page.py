"""RUN -> summary.json and report.html: what every stage left behind, on one page that opens offline."""

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..errors import UserError
from ..runtime.progress import duration
from ..settings import ROOT, Settings, to_yaml
from ..storage.files import read_json, write_bytes, write_json
from ..train.report.rows import column, read_history
from .plots import loss_curve
from .videos import SHOWN, data_address, read_items

TEMPLATE = Path(__file__).with_name("page.html")
SAMPLERS = {
    "sde_first_order": "first-order SDE sampler",
    "ode_first_order": "first-order ODE sampler",
    "ode_second_order": "second-order ODE sampler",
    "stochastic_heun": "stochastic Heun sampler",
    "dbim": "DBIM",
    "ddim": "DDIM",
}
PACKAGES = ("ray", "torch", "deepspeed", "diffusers", "av", "decord", "webdataset", "pyarrow")
PUBLISHED = {  # what a metric can be held against, where the protocol is kept: the paper's abstract
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


def write_report(settings: Settings) -> dict[str, Any]:
    """Write RUN/summary.json and RUN/report.html. Returns the summary. Raises UserError if there is no run."""
    started = time.monotonic()
    run = settings.run.folder
    stages = read_stages(settings)
    if not any(stages.values()):
        raise UserError(
            f"{run}: no stage has finished there; run jobs/cache_latents.py, train_prior.py, finetune.py and sample.py, "
            "or give --run.name and --run.storage of a run that has"
        )
    summary = combine(stages)
    page = render(settings, stages, summary)
    summary["timings"]["report"] = time.monotonic() - started
    summary["report"] = f"{run}/report.html"
    write_bytes(f"{run}/report.html", page.encode())
    write_json(f"{run}/summary.json", summary)
    return summary


def read_stages(settings: Settings) -> dict[str, dict[str, Any] | None]:
    """The summary.json of each stage by name (metrics.json of evaluate); None where it has not run. Raises UserError."""
    run = settings.run.folder
    addresses = {name: f"{run}/{name}/summary.json" for name in STAGES}
    addresses |= {"cache": f"{settings.cache_path}/summary.json", "evaluate": f"{run}/evaluate/metrics.json"}
    stages: dict[str, dict[str, Any] | None] = {}
    for name, address in addresses.items():
        try:
            stages[name] = read_json(address)
        except (FileNotFoundError, NotADirectoryError):
            stages[name] = None
        except ValueError as error:
            raise UserError(f"{address}: not valid JSON ({error}); run that stage again") from error
    return stages


def combine(stages: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """RUN/summary.json: the headline numbers at the top (null where not measured), the stages' own below."""
    samples = stages["samples"] or {}
    metrics = samples.get("metrics", {})

    # the median has a PSNR, which outliers would spoil; of errors it is the mean that training makes small
    def of(name: str, statistic: str = "median") -> float | None:
        return metrics.get(name, {}).get(statistic)

    errors = {name: of(name, "mean") for name in ("prior_latent_error", "replicated_latent_error")}
    if errors["prior_latent_error"] is None:
        errors = {name: (stages["prior"] or {}).get(name) for name in errors}
    return {
        "psnr_first_frame_median": of("psnr_first_frame"),
        "motion_ratio_median": of("motion_ratio"),
        "motion_ratio_quartile1": of("motion_ratio", "quartile1"),
        "motion_ratio_quartile3": of("motion_ratio", "quartile3"),
        **errors,
        "held_out_inputs": samples.get("count") if samples.get("source") == "held_out" else None,
        "timings": {name: stage["seconds"] for name, stage in stages.items() if stage and "seconds" in stage},
        "commit": commit(),
        "stages": stages,
    }


def commit() -> str:
    """FRAMEBRIDGE_COMMIT, which a submitted job needs, or what git says, or "unknown"."""
    if named := os.environ.get("FRAMEBRIDGE_COMMIT"):
        return named
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Python and the packages that matter, as installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def render(settings: Settings, stages: dict[str, dict[str, Any] | None], summary: dict[str, Any]) -> str:
    """The page. Everything that comes from files is escaped, but for the curves, which are drawn here."""
    run = settings.run.folder
    samples = stages["samples"]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "number": number}
    keys = samples["items"] if samples else []
    latent = {name: summary[f"{name}_latent_error"] for name in ("prior", "replicated")}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        settings=settings,
        yaml=to_yaml(settings),
        stages=stages,
        names=STAGES,
        published=PUBLISHED,
        summary=summary,
        samples=samples,
        items=read_items(f"{run}/samples", keys),
        smoothed=read_items(f"{run}/bivdiff", stages["bivdiff"]["items"] if stages["bivdiff"] else []),
        sampler=SAMPLERS.get(samples["settings"]["sampler"], samples["settings"]["sampler"]) if samples else "",
        more=max(0, len(keys) - SHOWN),
        curves={name: curve(f"{run}/{name}/history.csv", name) for name in ("prior", "finetune")},
        sheet=data_address(f"{settings.cache_path}/contact_sheet.png"),
        latent=latent,
        total=sum(summary["timings"].values()),
        versions=versions(),
        made=time.strftime("%d %B %Y, %H:%M"),
    )


def curve(address: str, name: str) -> Markup | None:
    """The loss curve of a training's history; None if there is no history, or nothing in it."""
    rows = read_history(address)
    return Markup(loss_curve(rows, name)) if column(rows, "loss") else None


def number(value: float | None, digits: int = 2) -> str:
    """Rounded to so many decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
