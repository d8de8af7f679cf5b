"""Write the export that a finished run ends with: whole weights, config.json and model card."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.checkpoints.exports import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, save_export
from ...models.checkpoints.weights import State
from ...storage.files import is_remote, read_json, resolve, write_bytes
from ..adapters import merged
from ..initial import KINDS, initial_model
from ..plan import FINGERPRINT_FILE
from ..spec import TrainSpec
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


def export_config(spec: TrainSpec) -> dict[str, Any]:
    """config.json of the export."""
    cache, data = spec.cache, spec.data
    return {
        "kind": KINDS[spec.job],
        "model": spec.model.model_dump(mode="json"),
        "bridge": spec.bridge.model_dump(mode="json"),
        "latent_shape": cache.latent_shape,
        "text_shape": cache.text_shape,
        "text": {name: value for name, value in cache.settings.items() if name.startswith("text.")},
        "classes": cache.classes,
        "vae": {"path": spec.vae.path, "weights_hash": cache.vae_weights_hash, "scaling_factor": cache.scaling_factor},
        "cache_fingerprint": cache.fingerprint,
        "steps": spec.train.steps,
        "init": spec.train.init,
        "data": {"height": data.height, "width": data.width, "frames": data.frames, "stride": data.stride},
        "prior_export": spec.prior_export,
    }


def write_export(spec: TrainSpec, learned: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
    """Write the export of a finished run, with its card."""
    config = export_config(spec)
    card = model_card(config, read_json(f"{spec.folder}/{FINGERPRINT_FILE}"), spec.data.source, summary)
    export(spec.export, whole_state(spec, learned), config, card)


def whole_state(spec: TrainSpec, learned: Mapping[str, Tensor]) -> State:
    """The backbone's state for an export: `learned` (names of the job's model), and adapters merged in.

    Frozen weights are as they came, not as bf16 rounded them.
    """
    state = dict(learned)
    if spec.train.trainable is not None or spec.train.lora.rank is not None:
        state = initial_model(spec)[0].state_dict() | state
    return merged({name.removeprefix("backbone."): value for name, value in state.items()}, spec.train.lora)
