"""The ablation as one job: videos, their cache, every training and measurement as a Ray task, and the page.

The result of a task is a file. A task whose file is there is not run again, so a job that was cut off goes on.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.cache.run import build_cache
from pipeline.errors import UserError
from pipeline.runtime.connect import start_ray
from pipeline.runtime.placement import check_room, selector
from pipeline.runtime.progress import Progress
from pipeline.settings import Settings, build
from pipeline.shipped.synthetic import make_dataset
from pipeline.storage.files import exists, is_remote, list_files, read_json, write_json

from . import work
from .page import write_page
from .protocol import STILL, Measurement, Model, folder_of, measurements, models

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger("ablate")

SEED = 2  # of the videos; the shipped models were trained on those of seed 1
MADE_WITH = "made_with.json"
# sections that decide the numbers; protocol_of adds single settings of others
TOLD = ("data", "vae", "model", "bridge", "train", "prior")


class AblationPlan(NamedTuple):
    """All trainings and measurements, and the keys of those that are done."""

    settings: Settings
    trained: list[Model]
    measured: list[Measurement]
    done: set[str]  # keys of both kinds

    def pending(self, whole: list[Any]) -> list[Any]:
        """Those that are not done."""
        return [one for one in whole if one.key not in self.done]


def make_plan(settings: Settings) -> AblationPlan:
    """Compare the protocol with the files that are there. Raises UserError where it cannot be followed."""
    if is_remote(settings.run.storage):
        raise UserError(f"run.storage = {settings.run.storage}: the ablation makes videos; give a shared folder")
    for key, value in (("train.init", settings.train.init), ("evaluate.detector", settings.evaluate.detector)):
        if value is None:
            raise UserError(f"{key} = null: the ablation needs it; give --recipe ablation, or set {key}")
    videos = {"data": {"path": f"{settings.run.folder}/videos", "source": "ucf101"}}
    settings = build([settings.model_dump(mode="json"), videos])
    folder, made_with = folder_of(settings.run), protocol_of(settings)
    address = f"{folder}/{MADE_WITH}"
    if exists(address) and (before := read_json(address)) != made_with:
        changed = sorted(name for name in made_with if made_with[name] != before.get(name))
        raise UserError(
            f"{folder}: holds an ablation with another {', '.join(changed)}; set it alike, or change --run.name"
        )
    seeds = [models(settings, seed) for seed in range(settings.ablate.seeds)]
    trained = [model for of_seed in seeds for model in of_seed]
    measured = [one for of_seed in seeds for one in measurements(settings.ablate, of_seed)]
    done = {model.key for model in trained if exists(f"{model.settings.run.folder}/summary.json")}
    there = {address.rsplit("/", 1)[-1] for address in list_files(f"{folder}/measured")}
    done |= {one.key for one in measured if f"{one.key}.json" in there}
    return AblationPlan(settings, trained, measured, done)


def protocol_of(settings: Settings) -> dict[str, Any]:
    """All settings that decide the numbers. Seeds and experiments do not: more of them may follow later."""
    whole = settings.model_dump(mode="json")
    told = {name: whole[name] for name in TOLD}
    told["data"].pop("path")
    told["sample"] = {name: whole["sample"][name] for name in ("steps", "guidance", "spacing")}
    told["evaluate"] = {"detector": whole["evaluate"]["detector"]}
    told["ablate"] = {name: whole["ablate"][name] for name in ("videos", "clips", "sampler_clips")}
    return told


def plan_ablation(settings: Settings) -> str:
    """Say what run_ablation would do. Raises UserError."""
    plan = make_plan(settings)
    return (
        f"Plan: {settings.ablate.videos} synthetic videos and their cache, {len(plan.trained)} models "
        f"({len(plan.pending(plan.trained))} to train), {len(plan.measured)} measurements "
        f"({len(plan.pending(plan.measured))} to do), each a Ray task of one CPU\n"
        f"  to {folder_of(settings.run)}: clips.csv, measurements.csv, results.json, results.md and pictures"
    )


def run_ablation(settings: Settings, only_page: bool = False) -> dict[str, Any]:
    """Run what is missing, unless `only_page`, and write the page. Returns results.json.

    Raises UserError or JobFailed.
    """
    plan = make_plan(settings)
    settings, folder = plan.settings, folder_of(plan.settings.run)
    if only_page:
        log.info("%d of %d measurements are missing", len(plan.pending(plan.measured)), len(plan.measured))
    elif plan.pending(plan.trained) or plan.pending(plan.measured):
        share = settings.ablate.clips / settings.ablate.videos
        made = make_dataset(settings.data.path, settings.ablate.videos, SEED, test_share=share)
        log.info("%d videos, %d made now: %s", settings.ablate.videos, made, settings.data.path)
        start_ray(settings.cluster)
        build_cache(settings)
        write_json(f"{folder}/{MADE_WITH}", protocol_of(settings))
        check_room("train", settings.cluster.train, 1, "a task of the ablation")
        follow(submit(plan))
    else:
        log.info("nothing to do: all is trained and measured in %s; the page is written again", folder)
    there = [one for one in plan.measured if exists(f"{folder}/measured/{one.key}.json")]
    if not there or not exists(f"{folder}/measured/{STILL}.json"):
        raise UserError(f"{folder}: nothing is measured there; run jobs/ablate.py without --page")
    return write_page(settings, plan.measured, there)


def submit(plan: AblationPlan) -> "dict[ObjectRef[Any], str]":
    """Submit all pending tasks, each after those that it needs; seed by seed, so that a run cut off has whole seeds."""
    import ray

    resources, folder = plan.settings.cluster.train, folder_of(plan.settings.run)

    @ray.remote(num_cpus=resources.num_cpus, label_selector=selector(resources))
    def run(task: Callable[..., None], arguments: tuple[Any, ...], *after: None) -> None:
        task(*arguments)

    names: dict[ObjectRef[Any], str] = {}
    ready: dict[str | None, Any] = {None: None} | {key: None for key in plan.done}
    truth = None
    if not exists(f"{folder}/measured/{STILL}.json"):
        truth = run.remote(work.prepare, (plan.settings,))
        names[truth] = "true clips"
    for seed in range(plan.settings.ablate.seeds):
        for model in plan.trained:
            if model.seed == seed and model.key not in plan.done:
                ready[model.key] = run.remote(work.train_model, (model,), ready[model.needs])
                names[ready[model.key]] = f"{model.key} trained"
        for one in plan.measured:
            if one.model.seed == seed and one.key not in plan.done:
                names[run.remote(work.measure, (one, folder), truth, ready[one.model.key])] = one.key
    return names


def follow(tasks: "dict[ObjectRef[Any], str]") -> None:
    """Wait for all tasks and log their progress; the first error ends it."""
    import ray

    progress, waiting = Progress(len(tasks), "tasks"), list(tasks)
    while waiting:
        ended, waiting = ray.wait(waiting)
        ray.get(ended)
        progress.add()
        log.info(progress.line(tasks[ended[0]]))
