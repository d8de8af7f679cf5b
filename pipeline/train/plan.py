"""Check and plan a training before Ray starts: is everything there, does it fit, is the run done already."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.cache.info import CacheSpec, resolve_spec
from ..data.cache.manifest import Cache, read_null_text
from ..data.cache.prior_outputs import check_outputs
from ..data.load.mix import Mix, hash_of_clips, open_training_cache
from ..data.load.online import planned_cache
from ..data.load.order import micro_batching
from ..errors import UserError
from ..models.checkpoints.exports import is_export
from ..models.checkpoints.weights_hash import weights_hash
from ..models.files.paths import shipped_path
from ..models.latte import Latte
from ..models.prior import NeuralPrior
from ..models.videocrafter import VideoCrafter
from ..schema import TEST, TRAIN
from ..settings import Settings, load, without_removed
from ..settings.layers import ABSENT, lookup
from ..storage.files import exists, read_json, write_bytes, write_json
from .initial import check_prior, freeze, load_initial, untrained
from .report.trackers import check_trackers
from .spec import Job, TrainSpec, train_spec

FINGERPRINT_FILE = "made_with.json"
CHECKPOINTS = "checkpoints"
CHECKPOINT_BYTES = 4 + 8  # a parameter in a checkpoint: the float32 weight and AdamW's two moments

# settings of `train` that may change between two starts of one run: the result stays the same
FREE = {
    "micro_batch",
    "activation_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_by",
    "log_every",
    "validate_every",
    "validate_clips",
    "zero_stage",
    "offload_optimizer",
    "damaged_clips",
    "compile",
}


class RunStatus(Enum):
    """How far a run is, in the words of its plan."""

    NEW = "new"
    INTERRUPTED = "goes on from its last checkpoint"
    DONE = "done already: nothing to do"


@dataclass(frozen=True)
class Run:
    """A training, checked before Ray starts."""

    spec: TrainSpec
    settings: Settings
    cache: Cache
    model: nn.Module  # on the meta device: a shape, no weights
    initialised_from: str  # where the weights come from, in words
    fingerprint: dict[str, Any]  # all that decides the result


def prepare(job: Job, settings: Settings) -> Run:
    """Find and check cache, initial weights and prior. Reads only. Raises UserError or WeightsMismatch."""
    check_trackers(settings.run.track)
    wanted = resolve_spec(settings.data, settings.vae, settings.text)
    if settings.data.online:
        cache = planned_cache(settings.data, wanted)
    else:
        cache = open_training_cache(settings.cache_path, settings.cache.mix, wanted)
    if not cache.select(TRAIN):
        raise UserError(f"{cache.path}: no training clips; lower data.holdout_fraction or add videos, and cache again")
    spec = train_spec(job, settings, cache.spec)
    model, initialised_from = meta_model(spec)
    if job == "finetune" and settings.model.backbone != "latte" and settings.train.label_dropout:
        read_null_text(cache.path)
    if spec.prior_export:
        check_prior(spec.prior_export, cache.spec)
        if spec.bridge.cached_prior and isinstance(cache, Mix):
            raise UserError("bridge.cached_prior = true takes one cache; with cache.mix set it false")
        if spec.bridge.cached_prior:
            check_outputs(cache, weights_hash(shipped_path(spec.prior_export)))
    return Run(spec, settings, cache, model, initialised_from, run_fingerprint(spec, cache))


def meta_model(spec: TrainSpec) -> tuple[nn.Module, str]:
    """The job's model without weights, after train.init was tried on it; and where the weights come from."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        model = untrained(spec)
        with torch.device("cpu"):
            initialised_from = load_initial(spec, model.backbone)
        freeze(spec, model.backbone)
        return model, initialised_from


def run_fingerprint(spec: TrainSpec, cache: Cache) -> dict[str, Any]:
    """All that decides the result of a run. Workers and ZeRO stage do not: a run may go on with others."""
    result: dict[str, Any] = {
        "run.seed": spec.run.seed,
        "cache.fingerprint": cache.spec.fingerprint,
        "cache.clips": f"{len(cache.rows)} ({hash_of_clips(cache)})",
    }
    if isinstance(cache, Mix):
        result["cache.mix"] = [
            f"{p.clips} clips ({p.keys}) of {p.fingerprint}, weight {p.weight:g}" for p in cache.parts
        ]
    decisive = {"model": spec.model.model_dump(mode="json"), "train": spec.train.model_dump(mode="json", exclude=FREE)}
    if spec.job == "finetune":
        decisive["bridge"] = spec.bridge.model_dump(mode="json", exclude={"prior_path"})
    prefix = spec.key.removesuffix("train")
    result |= {f"{prefix}{name}.{key}": value for name, section in decisive.items() for key, value in section.items()}
    if spec.train.init is not None:
        result[f"{spec.key}.init (its weights)"] = weights_hash(shipped_path(spec.train.init))
    if spec.prior_export:
        result["bridge.prior_path (its weights)"] = weights_hash(shipped_path(spec.prior_export))
    return result


def run_status(run: Run) -> RunStatus:
    """How far the run is. Raises UserError if its folder holds a run of other settings."""
    folder, state = run.spec.folder, RunStatus.DONE if is_export(run.spec.export) else RunStatus.INTERRUPTED
    if not exists(f"{folder}/{FINGERPRINT_FILE}"):
        if state == RunStatus.DONE:
            raise UserError(f"{run.spec.export}: an export made elsewhere; choose another --run.name, or delete it")
        return RunStatus.NEW
    # a setting that an earlier version did not have was at its default
    before = without_removed(defaults(run.fingerprint) | read_json(f"{folder}/{FINGERPRINT_FILE}"))
    differences = [
        f"{key}: was {before.get(key)!r}, now {run.fingerprint.get(key)!r}"
        for key in sorted(before.keys() | run.fingerprint.keys())
        if before.get(key) != run.fingerprint.get(key)
    ]
    if differences and state == RunStatus.INTERRUPTED and not exists(f"{folder}/{CHECKPOINTS}"):
        return RunStatus.NEW  # nothing had been trained yet
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise UserError(
            f"{folder}: holds a {'finished' if state == RunStatus.DONE else 'half-finished'} run of other settings "
            f"({'; '.join(differences[:4])}{more}); set them alike, choose another --run.name, or delete that folder"
        )
    return state


def defaults(keys: Iterable[str]) -> dict[str, Any]:
    """The values of ray_config.yaml for those of the dotted keys that are settings."""
    tree = load([])[0].model_dump(mode="json")
    return {key: value for key in keys if (value := lookup(tree, key)) is not ABSENT}


def record(run: Run) -> None:
    """Write settings and fingerprint beside the run's results."""
    write_bytes(f"{run.spec.folder}/settings.yaml", run.settings.to_yaml().encode())
    write_json(f"{run.spec.folder}/{FINGERPRINT_FILE}", run.fingerprint)


def plan_training(run: Run) -> str:
    """Say in words and figures what the run would do."""
    spec, train = run.spec, run.spec.train
    clips, held_out = len(run.cache.select(TRAIN)), len(run.cache.select(TEST))
    parameters = sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    part = f", {trained / 1e6:.2f} M trained" if trained < parameters else ""
    least, workers = spec.resources.workers_range
    micro_batch, micro_batches = micro_batching(train.global_batch, train.micro_batch, workers)
    flops = training_flops(run.model, run.cache.spec)
    epochs = train.steps * train.global_batch / clips
    kept = f"the {'last' if train.keep_by == 'time' else 'best'} {train.keep_checkpoints}"
    return (
        f"Plan: {spec.job} {run.initialised_from}, {run_status(run).value}\n"
        f"  model         {parameters / 1e6:.2f} M parameters{part}, {tokens(run.model)}"
        f"{flops / 1e12:.4g} TFLOP a clip (forward + backward)\n"
        f"  data          {clips} training and {held_out} held-out clips in {_describe_caches(run)}\n"
        f"  steps         {train.steps} of {train.global_batch} clips = {epochs:.1f} epochs: "
        f"{'' if least == workers else f'{least} to '}{workers} workers x {micro_batches} micro-batches of "
        f"{micro_batch}, {flops * train.global_batch / 1e12:.4g} TFLOP a step\n"
        f"  checkpoints   every {train.checkpoint_every} steps, {kept} kept, "
        f"{_in_bytes(trained * CHECKPOINT_BYTES)} each; export {_in_bytes(parameters * 4)}\n"
        f"  to            {spec.folder}"
    )


def _describe_caches(run: Run) -> str:
    cache = run.cache
    if not isinstance(cache, Mix):
        return f"{cache.path}{', made while training runs' if run.spec.data.online else ''}"
    total = sum(drawn for _, drawn in cache.shares)
    shares = zip(cache.parts, cache.shares, strict=True)
    return ", ".join(f"{part.path} ({drawn / total:.0%} of the draws)" for part, (_, drawn) in shares)


def tokens(model: nn.Module) -> str:
    """Say how many tokens a Latte sees of one clip, the image's frame included; "" for another backbone."""
    backbone = model.backbone
    if not isinstance(backbone, Latte):
        return ""
    return f"{backbone.num_frames * backbone.pos_embed.shape[1]} tokens a clip, "


def training_flops(model: nn.Module, spec: CacheSpec) -> float:
    """Count the FLOP of one clip, forward and backward, on the meta device; nothing is computed.

    The backward pass costs one forward for the gradients of activations, and another for those of weights, less the
    share of frozen weights.
    """
    shape = (1, *spec.latent_shape)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        y, image_latent = torch.empty(1, dtype=torch.int64), torch.empty(1, *shape[2:])
        if isinstance(model, NeuralPrior):
            model(image_latent, y)
        else:
            given = {"image_latent": image_latent, "prior": torch.empty(shape), "stride": torch.empty(1)}
            given["text"] = torch.empty(1, *(spec.text_shape or ()))
            if isinstance(model.backbone, VideoCrafter) and model.backbone.image_proj_model is not None:
                given["image_features"] = torch.empty(1, 257, model.backbone.image_proj_model.proj_in.in_features)
            conditions = {name: given[name] for name in model.conditions}  # type: ignore[union-attr]
            model(torch.empty(shape), torch.empty(1), y, **conditions)
    parameters = list(model.parameters())
    learned = sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)
    return (2.0 + learned) * counter.get_total_flops()


def _in_bytes(count: float) -> str:
    power = min(3, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
