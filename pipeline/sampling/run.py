"""CHECKPOINT -> SAMPLES, over Ray Data actors: plan, leave out what is done, generate, summarise."""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..data.cache.manifest import Cache, open_cache
from ..data.cache.moments import MOMENTS, load_moments
from ..errors import UserError
from ..models.files.vae import vae_identity
from ..sampling.measures import summarise_columns
from ..settings import Settings
from ..storage.files import exists, read_json, write_json
from .batches import Work, find_done, run_batches, unfinished, write_grid
from .exports import (
    Exports,
    check_sampler,
    check_text,
    check_vae,
    export_sha256,
    find_exports,
    load_networks,
    sampler_name,
)
from .generate import LoadedModel, load_for_sampling
from .items import Item, Rejection, held_out_items, image_items
from .write import TrueClips, sample_batch

log = logging.getLogger("sample")

VERSION = 1  # of what decides a clip besides settings and weights; raise it when the mathematics changes


class SamplingPlan(NamedTuple):
    """Everything known before Ray starts."""

    folder: str
    exports: Exports
    cache: Cache | None
    items: list[Item]
    rejected: list[Rejection]
    settings: dict[str, Any]  # what decides the clips
    done: dict[str, dict[str, Any]]  # records of items that are there, by key
    other: int  # items that are there, sampled with other settings or weights

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def pending(self) -> int:
        return len(self.items) - len(self.done)

    def fingerprint_of(self, item: Item) -> str:
        asked = f"{self.fingerprint}\0{item['label']}\0{item['caption']}"
        return hashlib.blake2b(asked.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def sampling_work(
    device: str, load: Callable[..., LoadedModel], open_clips: Callable[[], TrueClips] | None, seed: int, folder: str
) -> Work:
    """Load the models of a sampling actor. Return the function that makes a batch."""
    loaded = load(device=device)
    clips = None if open_clips is None else open_clips()

    def work(items: list[Item], fingerprints: list[str]) -> tuple[list[dict[str, Any]], list[Rejection]]:
        return sample_batch(loaded, items, fingerprints, clips, seed, folder)

    return work


def make_plan(settings: Settings) -> SamplingPlan:
    """Read exports, items and what was sampled before. Writes nothing. Raises UserError."""
    exports = find_exports(settings.model_export, settings.bridge, settings.run.folder)
    weights_hash, _ = vae_identity(settings.vae.path)
    check_vae(exports, settings.vae.path, weights_hash)
    check_sampler(exports, settings.sample)
    check_text(exports, settings.text)
    if settings.sample.analytic_init is not None:
        load_moments(settings.sample.analytic_init, exports.latent_shape)
    cache = None
    rejected: list[Rejection] = []
    if settings.sample.images is None:
        cache = open_cache(settings.cache_path)
        check_cache(exports, cache)
        items = held_out_items(cache, settings.sample.count)
    else:
        classes = exports.config["classes"]
        items, rejected = image_items(settings.sample.images, classes, settings.sample.count, settings.data.max_pixels)
    deciding = {
        "version": VERSION,
        "model": export_sha256(exports.model_path),
        "prior": "replicated" if exports.prior_path is None else export_sha256(exports.prior_path),
        "vae": weights_hash,
        "vae_dtype": settings.vae.dtype,
        "bridge": exports.config["bridge"],
        "sampler": sampler_name(exports, settings.sample),
        **settings.sample.model_dump(
            include={"steps", "spacing", "eta", "order", "start", "analytic_init", "guidance", "stride"}
        ),
        # only where it is set: samples from before there was such a setting stand
        **settings.sample.model_dump(include={"image_guidance"}, exclude_none=True),
        "moments": moments_identity(settings.sample.analytic_init),
        "seed": settings.run.seed,
        "fps": settings.sample.fps,
    }
    if settings.sample.gif:
        deciding["gif"] = True
    plan = SamplingPlan(f"{settings.run.folder}/samples", exports, cache, items, rejected, deciding, {}, 0)
    found = find_done(plan.folder, items, plan.fingerprint_of)
    return plan._replace(done=found.records, other=found.other)


def moments_identity(folder: str | None) -> dict[str, Any] | None:
    """moments.json of what sampling starts from."""
    return None if folder is None else read_json(f"{folder}/{MOMENTS}")


def check_cache(exports: Exports, cache: Cache) -> None:
    """Raise UserError unless the cache holds latents of the kind that the model was trained on."""
    made_with = cache.spec.settings["vae.path (hash of its weights)"]
    for what, found, trained in (
        ("latents of F, C, h, w =", cache.spec.latent_shape, exports.config["latent_shape"]),
        ("latents of a VAE with hash", made_with, exports.config["vae"]["weights_hash"]),
    ):
        if found != trained:
            raise UserError(
                f"{cache.path}: holds {what} {found}, but {exports.model_path} was trained on {trained}; "
                "give the cache that it was trained from with --cache.path, or images with --sample.images"
            )


def plan_sampling(settings: Settings) -> str:
    """What run_sampling would do, in words. Raises UserError."""
    plan = make_plan(settings)
    batches = len(unfinished(_batches(plan, settings.sample.batch), plan.done))
    guidance, image_guidance = settings.sample.guidance, settings.sample.image_guidance
    apart = image_guidance not in (None, guidance)
    evaluations = 3 if apart else 2 if guidance != 1.0 else 1
    return (
        f"Plan: {len(plan.items)} {_what(plan)}, {len(plan.done)} of them sampled before, {plan.pending} to do\n"
        f"  model {plan.exports.model_path} ({plan.settings['sampler']}, {settings.sample.steps} steps"
        f"{f', {evaluations} evaluations a step for guidance' if evaluations > 1 else ''}), prior {plan.exports.prior_path or 'replicated'}\n"
        f"  {batches} batches of up to {settings.sample.batch} on up to {settings.cluster.sample.actors} actors\n"
        f"  to {plan.folder}" + _other(plan)
    )


def run_sampling(settings: Settings) -> dict[str, Any]:
    """Sample every item that is not there yet. Returns what it writes to RUN/samples/summary.json.

    Raises UserError, before anything is written, for a wrong model, prior, VAE, cache or folder of images.
    """
    started = time.monotonic()
    plan = make_plan(settings)
    for name, reason in plan.rejected:
        log.warning("%s: %s; left out", name, reason)
    summary_path = f"{plan.folder}/summary.json"
    earlier = read_json(summary_path) if exists(summary_path) else {}
    if earlier.get("fingerprint") != plan.fingerprint:
        earlier = {}
    keys = [item["key"] for item in plan.items]
    if not plan.pending and earlier.get("items") == keys:
        log.info("nothing to do: %d %s are already sampled in %s", len(keys), _what(plan), plan.folder)
        return earlier | {"sampled_this_run": 0}
    if plan.other:
        log.info(_other(plan).strip())
    records, rejected = dict(plan.done), list(plan.rejected)
    if plan.pending:
        load_networks(plan.exports)  # weights of another model are found here, in one line, not in an actor
        load = partial(load_for_sampling, plan.exports, settings.sample, settings.vae, settings.text)
        open_clips = None if plan.cache is None else partial(TrueClips, plan.cache.path, plan.cache.spec, settings.data)
        build = partial(sampling_work, load=load, open_clips=open_clips, seed=settings.run.seed, folder=plan.folder)
        batches = _batches(plan, settings.sample.batch)
        found, rejected_now = run_batches(
            build, batches, plan.done, plan.fingerprint_of, settings.run.name, settings.cluster
        )
        records |= found
        rejected += rejected_now
    if not records:
        raise UserError(
            f"{settings.sample.images}: none of the {len(rejected)} images could be used, as is said above; give others"
        )
    ordered = [records[key] for key in keys if key in records]
    write_grid(plan.folder, [record["key"] for record in ordered], settings.sample.fps)
    seconds = time.monotonic() - started
    summary = summarise_samples(plan, ordered, rejected, seconds + earlier.get("seconds", 0.0))
    write_json(summary_path, summary)
    log.info("%d clips in %s, %d left out, %.0f s", len(ordered), plan.folder, len(rejected), seconds)
    return summary | {"sampled_this_run": plan.pending}


def _batches(plan: SamplingPlan, size: int) -> list[list[Item]]:
    return [plan.items[start : start + size] for start in range(0, len(plan.items), size)]


def summarise_samples(
    plan: SamplingPlan, records: list[dict[str, Any]], rejected: list[Rejection], seconds: float
) -> dict[str, Any]:
    """summary.json: what was sampled with what, how long it took, and statistics of every metric over the items."""
    config = plan.exports.config
    return {
        "fingerprint": plan.fingerprint,
        "model": plan.exports.model_path,
        "prior": plan.exports.prior_path or "replicated",
        "trained_steps": config.get("steps"),
        "settings": plan.settings,
        "source": "images" if plan.cache is None else "held_out",
        "count": len(records),
        "seconds": seconds,
        "refused": [one._asdict() for one in rejected],
        "notes": sorted({record["note"] for record in records if record["note"]}),
        "metrics": summarise_columns(record["metrics"] for record in records),
        "items": [record["key"] for record in records],
    }


def _what(plan: SamplingPlan) -> str:
    return "images" if plan.cache is None else "held-out clips"


def _other(plan: SamplingPlan) -> str:
    if not plan.other:
        return ""
    return f"\n{plan.other} of them were sampled with other weights or settings and are generated again"
