"""LIST -> CLIPS: plan what jobs/bivdiff.py is to make, leave out what is done, make it over actors, summarise."""

import hashlib
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..metrics.networks import MetricNetwork, detector_consistency, load_network, network_hashes
from ..models.checkpoints.weights_hash import folder_hash
from ..sampling.batches import Record, Work, find_done, run_batches, unfinished, write_grid
from ..sampling.exports import export_sha256
from ..sampling.items import Rejection, class_of
from ..sampling.measures import summarise, summarise_columns
from ..settings import Settings
from ..storage.files import exists, read_json, write_json
from .frames import check_canny
from .items import BivdiffClip, read_list
from .models import check_models, is_own, load_models, own_exports, parts_of, used_models
from .work import make_clips

log = logging.getLogger("bivdiff")

VERSION = 1  # of what decides a clip besides settings and weights; raise it when the mathematics changes
NOT_DECIDING = {"items", "alpha", "image_model", "adapter", "inversion_model", "video_model"}  # or decided by weights
GEOMETRY = {"frames", "stride", "window", "clip_starts", "clip_seed", "short_video", "height", "width", "decoder"}


class BivdiffPlan(NamedTuple):
    """Everything known before Ray starts."""

    folder: str
    rows: list[list[BivdiffClip]]  # of the list; the clips of a row differ in alpha
    rejected: list[Rejection]
    settings: dict[str, Any]  # what decides the clips
    done: dict[str, Record]  # records of clips that are there, by key
    other: int  # clips that are there, made with other settings or weights

    @property
    def clips(self) -> list[BivdiffClip]:
        return [clip for row in self.rows for clip in row]

    def fingerprint_of(self, clip: BivdiffClip) -> str:
        return fingerprint(self.settings, clip["key"], clip["alpha"])  # the key is of words and files


def fingerprint(*deciding: Any) -> str:
    return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=16).hexdigest()


def bivdiff_work(device: str, settings: Settings, folder: str) -> Work:
    """What an actor does with a row of the list."""
    models, networks = load_models(settings, device), load_metric_networks(settings, device)

    def work(clips: list[BivdiffClip], fingerprints: list[str]) -> tuple[list[Record], list[Rejection]]:
        return make_clips(models, networks, clips, settings, fingerprints, folder)

    return work


def load_metric_networks(settings: Settings, device: str) -> dict[str, MetricNetwork]:
    """Those that the clips are measured by, as far as evaluate.clip and evaluate.detector name them. Raises UserError."""
    networks: dict[str, MetricNetwork] = {}
    if settings.evaluate.clip is not None:
        networks["clip"] = load_network("clip", settings.evaluate, device)
    if settings.evaluate.detector is not None:
        networks["detector"] = detector_consistency(settings.evaluate.detector, device)
    return networks


def make_plan(settings: Settings) -> BivdiffPlan:
    """Read the list, look at the models and at what was made before. Writes nothing. Raises UserError."""
    rows, rejected = read_list(settings.bivdiff)
    check_models(settings)
    check_canny(settings.bivdiff)
    rows, unknown = check_prompts(rows, settings)
    deciding = {
        "version": VERSION,
        "bivdiff": settings.bivdiff.model_dump(mode="json", exclude=NOT_DECIDING),
        "data": settings.data.model_dump(mode="json", include=GEOMETRY),
        "models": {key: identity(key, path) for key, path in used_models(settings.bivdiff).items()},
        "measured_by": network_hashes(("clip", "detector"), settings.evaluate),
        "seed": settings.run.seed,
    }
    plan = BivdiffPlan(f"{settings.run.folder}/bivdiff", rows, rejected + unknown, deciding, {}, 0)
    found = find_done(plan.folder, plan.clips, plan.fingerprint_of)
    return plan._replace(done=found.records, other=found.other)


def check_prompts(rows: list[list[BivdiffClip]], settings: Settings) -> tuple[list[list[BivdiffClip]], list[Rejection]]:
    """The rows whose prompt the video model understands: one of this project without text knows its classes only."""
    bivdiff = settings.bivdiff
    if bivdiff.framework == "idm_only" or not is_own(str(bivdiff.video_model)):
        return rows, []
    config = own_exports(settings).config
    if config["model"].get("backbone", "latte") != "latte":
        return rows, []
    known: list[list[BivdiffClip]] = []
    unknown: list[list[BivdiffClip]] = []
    for row in rows:
        (known if class_of(row[0]["video_prompt"], config["classes"]) else unknown).append(row)
    classes = ", ".join(config["classes"]) or "no classes"
    reason = f"bivdiff.video_model takes no text, but {classes}; name one in video_prompt"
    rejected = [Rejection(row[0]["name"], reason) for row in unknown]
    if not known:
        raise UserError(f"bivdiff.items = {bivdiff.items}: none of its {len(rows)} prompts is a class: {reason}")
    return known, rejected


def identity(key: str, path: str) -> str:
    """Hash of a model's weights and configurations."""
    if key == "video_model" and is_own(path):
        return export_sha256(path)
    folder = Path(path).expanduser()
    return folder_hash(folder, parts_of(folder))


def plan_bivdiff(settings: Settings) -> str:
    """What run_bivdiff would do, in words. Raises UserError."""
    plan, bivdiff = make_plan(settings), settings.bivdiff
    lines = [
        f"Plan: {len(plan.clips)} clips of {len(plan.rows)} rows, {len(plan.done)} of them made before; "
        f"{len(plan.rejected)} rows left out",
        f"  task {bivdiff.task}, framework {bivdiff.framework}, alpha {', '.join(f'{alpha:g}' for alpha in bivdiff.alphas)}, "
        f"{settings.data.frames} frames of {settings.data.width} x {settings.data.height}, {bivdiff.steps} steps, guidance {bivdiff.guidance:g}",
        *(f"  {key}: {path}" for key, path in used_models(bivdiff).items()),
        f"  {len(unfinished(plan.rows, plan.done))} rows to do, on up to {settings.cluster.sample.actors} actors",
        f"  to {plan.folder}" + _other(plan),
        *(f"  left out: {one.name}: {one.reason}" for one in plan.rejected),
    ]
    return "\n".join(lines)


def run_bivdiff(settings: Settings) -> dict[str, Any]:
    """Make every clip that is not there yet. Returns what it writes to RUN/bivdiff/summary.json.

    Raises UserError, before anything is written, for models, a list or settings with which nothing could be made.
    """
    started = time.monotonic()
    plan = make_plan(settings)
    for name, reason in plan.rejected:
        log.warning("%s: %s; left out", name, reason)
    address = f"{plan.folder}/summary.json"
    earlier = read_json(address) if exists(address) else {}
    whole = fingerprint([plan.fingerprint_of(clip) for clip in plan.clips])
    if earlier.get("fingerprint") == whole and len(plan.done) == earlier["count"]:
        log.info("nothing to do: %d clips are already made in %s", earlier["count"], plan.folder)
        return earlier | {"made_this_run": 0}
    if plan.other:
        log.info(_other(plan).strip())
    records, rejected = dict(plan.done), list(plan.rejected)
    if unfinished(plan.rows, plan.done):
        build = partial(bivdiff_work, settings=settings, folder=plan.folder)
        made, rejected_now = run_batches(
            build, plan.rows, plan.done, plan.fingerprint_of, settings.run.name, settings.cluster
        )
        records |= made
        rejected += rejected_now
    if not records:
        raise UserError(
            f"bivdiff.items = {settings.bivdiff.items}: none of its {len(rejected)} rows could be made, as is said above"
        )
    ordered = [records[clip["key"]] for clip in plan.clips if clip["key"] in records]
    write_grid(plan.folder, [record["key"] for record in ordered], settings.bivdiff.fps)
    seconds = time.monotonic() - started + earlier.get("seconds", 0.0)
    summary = {"fingerprint": whole, "settings": plan.settings, "seconds": seconds}
    summary |= summarise_clips(ordered, rejected, settings.bivdiff.alphas)
    write_json(address, summary)
    log.info("%d clips in %s, %d rows left out, %.0f s", len(ordered), plan.folder, len(rejected), summary["seconds"])
    return summary | {"made_this_run": len(ordered) - len(plan.done)}


def summarise_clips(records: list[Record], rejected: list[Rejection], alphas: list[float]) -> dict[str, Any]:
    """What summary.json says of the clips: counts, seconds, and statistics of every metric for each alpha."""
    return {
        "count": len(records),
        "refused": [one._asdict() for one in rejected],
        "seconds_per_clip": summarise([record["seconds"] for record in records]),
        "metrics": {
            f"{alpha:g}": summarise_columns(record["metrics"] for record in records if record["alpha"] == alpha)
            for alpha in alphas
        },
        "items": [record["key"] for record in records],
    }


def _other(plan: BivdiffPlan) -> str:
    return f"\n{plan.other} of them were made with other weights or settings and are made again" if plan.other else ""
