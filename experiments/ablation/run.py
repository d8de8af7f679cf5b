"""The ablation as one job: videos, their cache, then every training and measurement as a Ray task, and at last the page.

A task's result is a file, and a task whose file is there is not run: cut off, the same line goes on from there.
"""

import csv
import io
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.cache.run import build_cache
from pipeline.errors import UserError
from pipeline.runtime.connect import start_ray
from pipeline.runtime.placement import check_room, selector
from pipeline.settings import Settings
from pipeline.shipped.synthetic import make_dataset
from pipeline.storage.files import exists, is_remote, list_files, read_json, write_bytes, write_json

from . import work
from .page import write_page
from .protocol import STILL, Measurement, Model, folder_of, measurements, models

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger("ablate")

SEED = 2  # of the videos; the shipped models were trained on those of seed 1
MADE_WITH = "made_with.json"
# Sections that decide the numbers; of others, some settings do
TOLD = ("data", "vae", "model", "bridge", "train", "prior")


class AblationPlan(NamedTuple):
    settings: Settings
    trained: list[Model]
    measured: list[Measurement]
    done: set[str]  # keys of both kinds

    def pending(self, whole: list[Any]) -> list[Any]:
        return [one for one in whole if one.key not in self.done]


def make_plan(settings: Settings) -> AblationPlan:
    """Reads what is there. Raises UserError where the protocol cannot be followed, or another one has been."""
    if is_remote(settings.run.storage):
        raise UserError(
            f"run.storage = {settings.run.storage}: the ablation makes videos; give a folder that all nodes share"
        )
    needed = {"train.init": settings.train.init, "evaluate.detector": settings.evaluate.detector}
    for key, value in needed.items():
        if value is None:
            raise UserError(f"{key} = null: the ablation needs it; give --recipe ablation, or set {key}")
    data = settings.data.model_copy(update={"path": f"{settings.run.folder}/videos", "source": "ucf101"})
    settings = settings.model_copy(update={"data": data})
    folder = folder_of(settings)
    made_with = protocol_of(settings)
    address = f"{folder}/{MADE_WITH}"
    if exists(address) and (before := read_json(address)) != made_with:
        changed = sorted(name for name in made_with if made_with[name] != before.get(name))
        raise UserError(
            f"{folder}: holds an ablation with another {', '.join(changed)}; set it alike, choose another --run.name, or "
            "delete that folder"
        )
    trained = [model for seed in range(settings.ablate.seeds) for model in models(settings, seed)]
    measured: list[Measurement] = []
    for seed in range(settings.ablate.seeds):
        measured += measurements(settings, [model for model in trained if model.seed == seed])
    done = {model.key for model in trained if exists(f"{model.settings.run.folder}/summary.json")}
    there = {address.rsplit("/", 1)[-1] for address in list_files(f"{folder}/measured")}
    done |= {one.key for one in measured if f"{one.key}.json" in there}
    return AblationPlan(settings, trained, measured, done)


def protocol_of(settings: Settings) -> dict[str, Any]:
    """What decides the numbers. Seeds and experiments do not: they may be added to."""
    whole = settings.model_dump(mode="json")
    told = {name: whole[name] for name in TOLD}
    told["data"].pop("path")
    told["sample"] = {name: whole["sample"][name] for name in ("steps", "guidance", "spacing")}
    told["evaluate"] = {"detector": whole["evaluate"]["detector"]}
    told["ablate"] = {name: whole["ablate"][name] for name in ("videos", "clips", "sampler_clips")}
    return told


def plan_ablation(settings: Settings) -> str:
    """What run_ablation would do, in words. Raises UserError."""
    plan = make_plan(settings)
    return (
        f"Plan: {settings.ablate.videos} synthetic videos and their cache, {len(plan.trained)} models "
        f"({len(plan.pending(plan.trained))} to train), {len(plan.measured)} measurements "
        f"({len(plan.pending(plan.measured))} to do), each a Ray task of one CPU\n"
        f"  to {folder_of(settings)}: clips.csv, measurements.csv, results.json, results.md and pictures"
    )


def run_ablation(settings: Settings, only_page: bool = False) -> dict[str, Any]:
    """Run what is not there yet, unless `only_page`, and write the page of all that is. Returns results.json.

    Raises UserError or JobFailed.
    """
    plan = make_plan(settings)
    settings, folder = plan.settings, folder_of(plan.settings)
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
    write_clips(folder, there)
    return write_page(settings, plan.measured, there)


def submit(plan: AblationPlan) -> "dict[ObjectRef[Any], str]":
    """All pending tasks, seed by seed, so that a run that is cut has whole seeds; each waits for what it needs."""
    import ray

    resources = plan.settings.cluster.train
    options = {"num_cpus": resources.num_cpus, "label_selector": selector(resources)}
    folder, seeds = folder_of(plan.settings), range(plan.settings.ablate.seeds)

    @ray.remote(**options)
    def prepare() -> None:
        work.prepare(plan.settings)

    @ray.remote(**options)
    def train(model: Model, after: None) -> None:
        work.train_model(model)

    @ray.remote(**options)
    def measure(one: Measurement, *after: None) -> None:
        work.measure(one, folder)

    names: dict[ObjectRef[Any], str] = {}
    ready: dict[str | None, Any] = {None: None} | {key: None for key in plan.done}
    truth = None
    if not exists(f"{folder}/measured/{STILL}.json"):
        truth = prepare.remote()
        names[truth] = "what is true"
    for seed in seeds:
        for model in plan.trained:
            if model.seed == seed and model.key not in plan.done:
                ready[model.key] = train.remote(model, ready[model.needs])
                names[ready[model.key]] = f"{model.key} trained"
        for one in plan.measured:
            if one.model.seed == seed and one.key not in plan.done:
                names[measure.remote(one, truth, ready[one.model.key])] = one.key
    return names


def follow(tasks: "dict[ObjectRef[Any], str]") -> None:
    """Wait for all, saying how far it is; the first error ends it."""
    import ray

    started, waiting = time.monotonic(), list(tasks)
    while waiting:
        ended, waiting = ray.wait(waiting)
        ray.get(ended)
        done = len(tasks) - len(waiting)
        left = (time.monotonic() - started) / done * len(waiting)
        log.info("%d of %d: %s, %.0f min to go", done, len(tasks), tasks[ended[0]], left / 60)


def write_clips(folder: str, measured: list[Measurement]) -> None:
    """clips.csv: one row a measurement and clip, with the detector's features: all that the page is computed from."""
    stream = io.StringIO()
    columns = ("model", "seed", "step", "sampler", "evaluations", "seconds_a_clip", "clip")
    numbers = ("latent_error", "motion_ratio", "psnr_first_frame", "prior_error")
    writer = csv.writer(stream, lineterminator="\n")
    features: list[str] = []
    for one in measured:
        found = read_json(f"{folder}/measured/{one.key}.json")
        if not features:
            features = [f"feature_{i}" for i in range(len(found["features"][0]))]
            writer.writerow([*columns, *numbers, *features])
        start = [one.model.name, one.model.seed, one.step, one.sampler, one.evaluations, f"{found['seconds']:.4f}"]
        for clip in range(one.clips):
            row = [found[name][clip] for name in numbers]
            writer.writerow(
                [*start, clip, *("" if value is None else f"{value:.5g}" for value in row), *found["features"][clip]]
            )
    write_bytes(f"{folder}/clips.csv", stream.getvalue().encode())
