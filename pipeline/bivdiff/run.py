"""LIST -> CLIPS: what jobs/bivdiff.py makes of which rows, with what."""

from functools import partial
from typing import Any

from ..errors import UserError
from ..metrics.networks import MetricNetwork, detector_consistency, load_network, network_hashes
from ..sampling.batches import ClipPlan, Work, fingerprint, run_plan
from ..sampling.exports import Exports, export_sha256
from ..sampling.items import Record, Rejection, class_of
from ..sampling.measures import summarise, summarise_columns
from ..sampling.write import GEOMETRY
from ..settings import EvaluateSettings, Settings
from .frames import check_canny
from .items import BivdiffClip, read_list
from .models import check_models, check_own, load_models, own_exports, pipeline_hash
from .work import make_clips

VERSION = 1  # of what decides a clip besides settings and weights; raise it when the mathematics changes
NOT_DECIDING = {"items", "alpha", "image_model", "adapter", "inversion_model", "video_model"}  # or decided by weights


def make_plan(settings: Settings) -> ClipPlan[BivdiffClip]:
    """Read the list, look at the models and at what was made before. Writes nothing. Raises UserError.

    A batch is a row of the list; its clips differ in alpha.
    """
    bivdiff = settings.bivdiff
    rows, rejected = read_list(bivdiff)
    own = own_exports(bivdiff, settings.bridge, settings.run.folder)
    check_models(bivdiff, own)
    check_canny(bivdiff)
    if own is not None:
        check_own(own, settings.vae, settings.text, settings.data)
        rows, unknown = check_prompts(rows, own, bivdiff.items)
        rejected += unknown
    deciding = {
        "version": VERSION,
        "bivdiff": bivdiff.model_dump(mode="json", exclude=NOT_DECIDING),
        "data": settings.data.model_dump(mode="json", include=GEOMETRY | {"decoder"}),
        "models": {
            key: export_sha256(path) if own is not None and key == "video_model" else pipeline_hash(path)
            for key, path in bivdiff.used_models.items()
        },
        "measured_by": network_hashes(("clip", "detector"), settings.evaluate),
        "seed": settings.run.seed,
    }
    # a clip's key is of its words and files
    fingerprints = {clip["key"]: fingerprint([deciding, clip["key"], clip["alpha"]]) for row in rows for clip in row}
    source = f"bivdiff.items = {bivdiff.items}"
    return ClipPlan(source, f"{settings.run.folder}/bivdiff", rows, rejected, deciding, fingerprints)


def check_prompts(
    rows: list[list[BivdiffClip]], own: Exports, source: str | None
) -> tuple[list[list[BivdiffClip]], list[Rejection]]:
    """Reject the rows whose prompt the video model does not know: a model without text knows only its classes."""
    classes = own.config["classes"]
    if own.config["model"].get("backbone", "latte") != "latte":
        return rows, []
    known = [row for row in rows if class_of(row[0]["video_prompt"], classes)]
    unknown = [row for row in rows if not class_of(row[0]["video_prompt"], classes)]
    reason = f"bivdiff.video_model takes no text, but {', '.join(classes) or 'no classes'}; name one in video_prompt"
    if not known:
        raise UserError(f"bivdiff.items = {source}: none of its {len(rows)} prompts is a class: {reason}")
    return known, [Rejection(row[0]["name"], reason) for row in unknown]


def plan_bivdiff(settings: Settings) -> str:
    """Describe what run_bivdiff would do. Raises UserError."""
    plan, bivdiff, data = make_plan(settings), settings.bivdiff, settings.data
    lines = [
        f"Plan: {len(plan.fingerprints)} clips of {len(plan.batches)} rows, {len(plan.done)} of them made before; "
        f"{len(plan.rejected)} rows left out",
        f"  task {bivdiff.task}, framework {bivdiff.framework}, "
        f"alpha {', '.join(f'{alpha:g}' for alpha in bivdiff.alphas)}, "
        f"{data.frames} frames of {data.width} x {data.height}, {bivdiff.steps} steps, guidance {bivdiff.guidance:g}",
        *(f"  {key}: {path}" for key, path in bivdiff.used_models.items()),
        f"  {len(plan.unfinished)} rows to do, on up to {settings.cluster.sample.actors} actors",
        f"  to {plan.folder}{plan.remade}",
        *(f"  left out: {name}: {reason}" for name, reason in plan.rejected),
    ]
    return "\n".join(lines)


def run_bivdiff(settings: Settings) -> dict[str, Any]:
    """Make every clip that is not there yet. Return what goes to RUN/bivdiff/summary.json.

    Raises UserError, before anything is written, for models, a list or settings with which nothing can be made.
    """
    plan, bivdiff = make_plan(settings), settings.bivdiff

    def describe(records: list[Record]) -> dict[str, Any]:
        """Give the entries of summary.json that are this job's own."""
        by_alpha = {alpha: [one["metrics"] for one in records if one["alpha"] == alpha] for alpha in bivdiff.alphas}
        return {
            "seconds_per_clip": summarise(record["seconds"] for record in records),
            "metrics": {f"{alpha:g}": summarise_columns(metrics) for alpha, metrics in by_alpha.items()},
        }

    def build(device: str) -> Work:
        """Load the models in an actor."""
        networks = load_metric_networks(settings.evaluate, device)
        return partial(make_clips, load_models(settings, device), networks, bivdiff, settings.data, settings.run.seed)

    # rows rejected before stay rejected: the summary counts the clips of the others
    finished = {"fingerprint": fingerprint([list(plan.fingerprints.values())]), "count": len(plan.done)}
    return run_plan(plan, build, finished, describe, bivdiff.fps, settings.run.name, settings.cluster)


def load_metric_networks(evaluate: EvaluateSettings, device: str) -> dict[str, MetricNetwork]:
    """Load the networks of evaluate.clip and evaluate.detector that are given. Raises UserError."""
    networks: dict[str, MetricNetwork] = {}
    if evaluate.clip is not None:
        networks["clip"] = load_network("clip", evaluate, device)
    if evaluate.detector is not None:
        networks["detector"] = detector_consistency(evaluate.detector, device)
    return networks
