"""EXPORT -> CLIPS: what jobs/sample.py makes, of which items, with what."""

from functools import partial
from typing import Any

from ..data.cache.manifest import Cache, open_cache
from ..data.cache.moments import MOMENTS, load_moments
from ..models.files.vae import vae_identity
from ..settings import Settings
from ..storage.files import read_json
from .batches import ClipPlan, Work, fingerprint, run_plan
from .exports import Exports, check_encoders, check_sampler, check_trained_latents, export_sha256, find_exports
from .generate import load_for_sampling
from .items import Item, Record, Rejection, held_out_items, image_items
from .measures import summarise_columns
from .write import TrueClips, sample_batch

VERSION = 1  # of what decides a clip besides settings and weights; raise it when the mathematics changes


def make_plan(settings: Settings) -> tuple[ClipPlan[Item], Exports, Cache | None]:
    """Find exports, items and what was sampled before; for images there is no cache. Raises UserError."""
    sample = settings.sample
    exports = find_exports(settings.model_export, settings.bridge, settings.run.folder)
    vae_hash, _ = vae_identity(settings.vae.path)
    check_encoders(exports, settings.vae.path, vae_hash, settings.text)
    check_sampler(exports, sample)
    if sample.analytic_init is not None:
        load_moments(sample.analytic_init, exports.latent_shape)
    cache = None
    rejected: list[Rejection] = []
    if sample.images is None:
        cache = open_cache(settings.cache_path)
        made_with = cache.spec.settings["vae.path (hash of its weights)"]
        remedy = "give the cache that it was trained from with --cache.path, or images with --sample.images"
        check_trained_latents(exports, cache.path, cache.spec.latent_shape, made_with, remedy)
        items = held_out_items(cache, sample.count)
    else:
        items, rejected = image_items(sample.images, exports.config["classes"], sample.count, settings.data.max_pixels)
    deciding = {
        "version": VERSION,
        "model": export_sha256(exports.model_path),
        "prior": "replicated" if exports.prior_path is None else export_sha256(exports.prior_path),
        "vae": vae_hash,
        "vae_dtype": settings.vae.dtype,
        "bridge": exports.config["bridge"],
        "sampler": exports.sampler(sample),
        **sample.model_dump(
            include={"steps", "spacing", "eta", "order", "start", "analytic_init", "guidance", "stride", "fps"}
        ),
        "moments": None if sample.analytic_init is None else read_json(f"{sample.analytic_init}/{MOMENTS}"),
        "seed": settings.run.seed,
        # settings that came later count only where they are set, so that earlier samples stay valid
        **sample.model_dump(include={"image_guidance"}, exclude_none=True),
        **({"gif": True} if sample.gif else {}),
    }
    whole = fingerprint(deciding)
    fingerprints = {item["key"]: fingerprint(f"{whole}\0{item['label']}\0{item['caption']}") for item in items}
    batches = [items[start : start + sample.batch] for start in range(0, len(items), sample.batch)]
    source = f"sample.images = {sample.images}"
    return ClipPlan(source, f"{settings.run.folder}/samples", batches, rejected, deciding, fingerprints), exports, cache


def plan_sampling(settings: Settings) -> str:
    """Describe what run_sampling would do. Raises UserError."""
    plan, exports, cache = make_plan(settings)
    sample = settings.sample
    evaluations = 3 if sample.guides_image_apart else 2 if sample.guidance != 1.0 else 1
    guided = f", {evaluations} evaluations a step for guidance" if evaluations > 1 else ""
    return (
        f"Plan: {len(plan.fingerprints)} {'images' if cache is None else 'held-out clips'}, "
        f"{len(plan.done)} of them sampled before, {plan.pending} to do\n"
        f"  model {exports.model_path} ({plan.settings['sampler']}, {sample.steps} steps{guided}), "
        f"prior {exports.prior_path or 'replicated'}\n"
        f"  {len(plan.unfinished)} batches of up to {sample.batch} on up to {settings.cluster.sample.actors} actors\n"
        f"  to {plan.folder}{plan.remade}"
    )


def run_sampling(settings: Settings) -> dict[str, Any]:
    """Sample every item that is not there yet. Return what goes to RUN/samples/summary.json.

    Raises UserError, before anything is written, for a wrong model, prior, VAE, cache or folder of images.
    """
    plan, exports, cache = make_plan(settings)
    clips = None if cache is None else TrueClips(cache.path, cache.spec, settings.data)
    source = "images" if cache is None else "held_out"

    def describe(records: list[Record]) -> dict[str, Any]:
        """Give the entries of summary.json that are this job's own."""
        return {
            "model": exports.model_path,
            "prior": exports.prior_path or "replicated",
            "trained_steps": exports.config.get("steps"),
            "source": source,
            "notes": sorted({record["note"] for record in records if record["note"]}),
            "metrics": summarise_columns(record["metrics"] for record in records),
        }

    def build(device: str) -> Work:
        """Load the models in an actor."""
        loaded = load_for_sampling(exports, settings.sample, settings.vae, settings.text, device)
        return partial(sample_batch, loaded, clips, settings.run.seed)

    items = list(plan.fingerprints)
    finished = {"fingerprint": fingerprint(plan.settings), "items": items, "count": len(plan.done)}
    return run_plan(plan, build, finished, describe, settings.sample.fps, settings.run.name, settings.cluster)
