"""What the driver settles before Ray starts: is everything there, does it fit, has the run been done already."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

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
from ..settings import Settings, load, to_yaml, without_removed
from ..storage.files import exists, read_json, write_bytes, write_json
from .initial import Job, check_prior, freeze, load_initial, sections, untrained, uses_prior
from .report.trackers import check_trackers

FINGERPRINT_FILE = "made_with.json"


CHECKPOINTS = "checkpoints"


CHECKPOINT_BYTES = 4 + 8  # of one parameter in a checkpoint: the float32 weight, AdamW's two moments


# of `train`: what may change between two starts of one run without changing what is trained
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


@dataclass(frozen=True)
class Run:
    """A job with everything that was found out about it; its folder is STORAGE/NAME/JOB."""

    job: Job
    settings: Settings
    cache: Cache
    model: nn.Module  # on the meta device: a shape, no weights
    initialised_from: str  # what the weights start from, in words
    fingerprint: dict[str, Any]  # what decides the result

    @property
    def folder(self) -> str:
        return run_folder(self.job, self.settings)

    @property
    def export(self) -> str:
        return f"{self.folder}/export"


def run_folder(job: Job, settings: Settings) -> str:
    return f"{settings.run.folder}/{job}"


def prepare(job: Job, settings: Settings) -> Run:
    """Find and check cache, initial weights and prior. Reads only. Raises UserError or WeightsMismatch."""
    check_trackers(settings)
    wanted = resolve_spec(settings)
    cache = (
        planned_cache(settings.data, wanted)
        if settings.data.online
        else open_training_cache(settings.cache_path, settings.cache.mix, wanted)
    )
    if not cache.select(TRAIN):
        raise UserError(
            f"{cache.path}: holds no training clips; lower data.holdout_fraction or add videos, and cache again"
        )
    model, initialised_from = meta_model(job, settings, cache.spec)
    if job == "finetune" and settings.model.backbone != "latte" and settings.train.label_dropout:
        read_null_text(cache.path)
    if uses_prior(job, settings):
        path = check_prior(settings, cache.spec)
        if settings.bridge.cached_prior and isinstance(cache, Mix):
            raise UserError("bridge.cached_prior = true is of one cache; with cache.mix set it false")
        if settings.bridge.cached_prior:
            check_outputs(cache, weights_hash(shipped_path(path)))
    return Run(job, settings, cache, model, initialised_from, run_fingerprint(job, settings, cache))


def meta_model(job: Job, settings: Settings, spec: CacheSpec) -> tuple[nn.Module, str]:
    """The job's model without weights, train.init having been tried on it."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        model = untrained(job, settings, spec)
        with torch.device("cpu"):
            backbone = model.backbone
            assert isinstance(backbone, nn.Module)
            initialised_from = load_initial(job, settings, spec, backbone)
        freeze(job, settings, backbone)
        return model, initialised_from


def run_fingerprint(job: Job, settings: Settings, cache: Cache) -> dict[str, Any]:
    """What decides the result of a run. Workers and ZeRO stage do not: a run may go on with others."""
    model, train = sections(job, settings)
    result: dict[str, Any] = {
        "run.seed": settings.run.seed,
        "cache.fingerprint": cache.spec.fingerprint,
        "cache.clips": f"{len(cache.rows)} ({hash_of_clips(cache)})",
    }
    if isinstance(cache, Mix):
        result["cache.mix"] = [
            f"{p.clips} clips ({p.keys}) of {p.fingerprint}, weight {p.weight:g}" for p in cache.parts
        ]
    prefix = "" if job == "finetune" else "prior."
    result |= {f"{prefix}model.{name}": value for name, value in model.model_dump(mode="json").items()}
    trained = train.model_dump(mode="json")
    result |= {f"{prefix}train.{name}": value for name, value in trained.items() if name not in FREE}
    if train.init is not None:
        result[f"{prefix}train.init (its weights)"] = weights_hash(shipped_path(train.init))
    if job == "finetune":
        bridge = settings.bridge.model_dump(mode="json")
        result |= {f"bridge.{name}": value for name, value in bridge.items() if name != "prior_path"}
        if uses_prior(job, settings):
            result["bridge.prior_path (its weights)"] = weights_hash(shipped_path(settings.prior_export))
    return result


def run_status(run: Run) -> Literal["new", "interrupted", "done"]:
    """How far the run is. Raises UserError if its folder holds a run of other settings."""
    state: Literal["interrupted", "done"]
    state = "done" if is_export(run.export) else "interrupted"
    address = f"{run.folder}/{FINGERPRINT_FILE}"
    if not exists(address):
        if state == "done":
            raise UserError(f"{run.export}: an export that was not made here; choose another --run.name, or delete it")
        return "new"
    # a setting that an earlier version did not have was at its default
    before = without_removed(defaults(run.fingerprint) | read_json(address))
    differences = [
        f"{key}: was {before.get(key)!r}, now {run.fingerprint.get(key)!r}"
        for key in sorted(before.keys() | run.fingerprint.keys())
        if before.get(key) != run.fingerprint.get(key)
    ]
    if differences and state == "interrupted" and not exists(f"{run.folder}/{CHECKPOINTS}"):
        return "new"  # nothing had been trained yet
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise UserError(
            f"{run.folder}: holds a {'finished' if state == 'done' else 'half-finished'} run of other settings "
            f"({'; '.join(differences[:4])}{more}); set them alike, choose another --run.name, or delete that folder"
        )
    return state


def defaults(keys: Iterable[str]) -> dict[str, Any]:
    """The values of ray_config.yaml for those of the dotted keys that are settings."""
    tree = load([])[0].model_dump(mode="json")
    result = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        settings = tree
        for part in section.split("."):
            settings = settings.get(part, {})
        if name in settings:
            result[key] = settings[name]
    return result


def record(run: Run) -> None:
    """Write what the run is made with beside its results."""
    write_bytes(f"{run.folder}/settings.yaml", to_yaml(run.settings).encode())
    write_json(f"{run.folder}/{FINGERPRINT_FILE}", run.fingerprint)


def plan_training(run: Run) -> str:
    """What the run would do, in words and figures."""
    _, train = sections(run.job, run.settings)
    clips, held_out = len(run.cache.select(TRAIN)), len(run.cache.select(TEST))
    parameters = sum(p.numel() for p in run.model.parameters())
    learned = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    least, workers = run.settings.cluster.train.workers_range
    micro_batch, micro_batches = micro_batching(train.global_batch, train.micro_batch, workers)
    flops = training_flops(run.model, run.cache.spec)
    epochs = train.steps * train.global_batch / clips
    size = learned * CHECKPOINT_BYTES
    kept = f"the {'last' if train.keep_by == 'time' else 'best'} {train.keep_checkpoints}"
    return (
        f"Plan: {run.job} {run.initialised_from}, {_describe_status(run)}\n"
        f"  model         {parameters / 1e6:.2f} M parameters{_describe_trained(run.model)}, {tokens(run.model)}"
        f"{flops / 1e12:.4g} TFLOP a clip (forward + backward)\n"
        f"  data          {clips} training and {held_out} held-out clips in {_describe_caches(run.cache, run.settings)}\n"
        f"  steps         {train.steps} of {train.global_batch} clips = {epochs:.1f} epochs: "
        f"{'' if least == workers else f'{least} to '}{workers} workers x {micro_batches} micro-batches of {micro_batch}, "
        f"{flops * train.global_batch / 1e12:.4g} TFLOP a step\n"
        f"  checkpoints   every {train.checkpoint_every} steps, {kept} kept, "
        f"{_size(size)} each; export {_size(parameters * 4)}\n"
        f"  to            {run.folder}"
    )


def _describe_status(run: Run) -> str:
    return {"new": "new", "interrupted": "goes on from its last checkpoint", "done": "done already: nothing to do"}[
        run_status(run)
    ]


def _describe_trained(model: nn.Module) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = any(not p.requires_grad for p in model.parameters())
    return f", {trained / 1e6:.2f} M trained" if frozen else ""


def _describe_caches(cache: Cache, settings: Settings) -> str:
    if not isinstance(cache, Mix):
        return f"{cache.path}{', made while training runs' if settings.data.online else ''}"
    total = sum(drawn for _, drawn in cache.shares)
    shares = zip(cache.parts, cache.shares, strict=True)
    return ", ".join(f"{part.path} ({drawn / total:.0%} of the draws)" for part, (_, drawn) in shares)


def tokens(model: nn.Module) -> str:
    """Tokens that a Latte sees of one clip, the image's frame included, in words; "" of another backbone."""
    backbone = model.backbone
    if not isinstance(backbone, Latte):
        return ""
    return f"{backbone.num_frames * backbone.pos_embed.shape[1]} tokens a clip, "


def training_flops(model: nn.Module, spec: CacheSpec) -> float:
    """FLOP of one clip, forward and backward; counted on the meta device, nothing is computed.

    The backward pass is one forward for the gradients of activations, and another for those of weights, less the share of
    weights that are frozen.
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


def _size(count: float) -> str:
    power = min(3, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
