"""Write the export that a finished run ends with: whole weights, config.json and model card."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.cache.info import CacheSpec
from ...data.cache.manifest import Cache
from ...models.checkpoints.exports import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, save_export
from ...models.checkpoints.weights import State
from ...settings import Settings
from ...storage.files import is_remote, read_json, resolve, write_bytes
from ..adapters import merged
from ..initial import Job, initial_model, sections, uses_prior
from ..plan import FINGERPRINT_FILE, run_folder
from .model_card import model_card


def export(address: str, state: Mapping[str, Tensor], config: Mapping[str, Any], card: str | None = None) -> None:
    """Write an export folder, local or s3://; there config.json comes last, and without it there is no export."""
    if not is_remote(address):
        save_export(resolve(address)[1], state, config, card=card)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = save_export(Path(folder) / "export", state, config, card=card)
        for name in (WEIGHTS_FILE, *((CARD_FILE,) if card else ()), CONFIG_FILE):
            write_bytes(f"{address}/{name}", (local / name).read_bytes())


def export_config(job: Job, settings: Settings, spec: CacheSpec) -> dict[str, Any]:
    """config.json of the export."""
    model, train = sections(job, settings)
    data = settings.data
    return {
        "kind": "image_to_video" if job == "finetune" else "prior",
        "model": model.model_dump(mode="json"),
        "bridge": settings.bridge.model_dump(mode="json"),
        "latent_shape": spec.latent_shape,
        "text_shape": spec.text_shape,
        "text": {name: value for name, value in spec.settings.items() if name.startswith("text.")},
        "classes": spec.classes,
        "vae": {
            "path": settings.vae.path,
            "weights_hash": spec.vae_weights_hash,
            "scaling_factor": spec.scaling_factor,
        },
        "cache_fingerprint": spec.fingerprint,
        "steps": train.steps,
        "init": train.init,
        "data": {"height": data.height, "width": data.width, "frames": data.frames, "stride": data.stride},
        "prior_export": settings.prior_export if uses_prior(job, settings) else None,
    }


def write_export(
    job: Job, settings: Settings, cache: Cache, learned: Mapping[str, torch.Tensor], summary: Mapping[str, Any]
) -> None:
    """The export of a finished run, with its card."""
    folder = run_folder(job, settings)
    config = export_config(job, settings, cache.spec)
    card = model_card(config, read_json(f"{folder}/{FINGERPRINT_FILE}"), settings.data.source, summary)
    export(f"{folder}/export", whole_state(job, settings, cache.spec, learned), config, card)


def whole_state(job: Job, settings: Settings, spec: CacheSpec, learned: Mapping[str, torch.Tensor]) -> State:
    """The backbone's state for an export: what was trained (names of the job's model), frozen weights as they came, before
    any rounding to bf16, and adapters merged in.
    """
    _, train = sections(job, settings)
    state = dict(learned)
    if train.trainable is not None or train.lora.rank is not None:
        state = initial_model(job, settings, spec)[0].state_dict() | state
    return merged({name.removeprefix("backbone."): value for name, value in state.items()}, train.lora)
