"""Tiny random models and a tiny cache of real videos: what sampling needs, in seconds."""

from pathlib import Path
from typing import Any

import torch

from pipeline.data.cache.commit import commit
from pipeline.data.cache.encode import EncodeClips
from pipeline.data.cache.info import resolve_spec, write_spec
from pipeline.data.cache.shards import npy_bytes
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.plan.clips import plan_clips
from pipeline.models.build import VideoNetwork, build_image_to_video, build_prior
from pipeline.models.checkpoints.exports import save_export
from pipeline.models.files.vae import vae_identity
from pipeline.models.prior import NeuralPrior
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import LoadedModel, load_for_sampling
from pipeline.schema import ENCODED_SCHEMA
from pipeline.settings import ROOT, ModelSettings, Settings, VideoModelSettings, build, parse_overrides, read_yaml

FRAMES, SIDE = 4, 32
CLASSES = ["bounce", "slide left"]
SHAPE = [FRAMES, 4, SIDE // 8, SIDE // 8]


def tiny_model(image_condition: str = "frame", prior_condition: bool = False) -> VideoModelSettings:
    return VideoModelSettings(
        backbone="latte",
        unet3d=None,
        cogvideox=None,
        size=None,
        hidden_size=32,
        depth=2,
        num_heads=2,
        patch_size=2,
        image_condition=image_condition,  # type: ignore[arg-type]
        prior_condition=prior_condition,
    )


def randomise(module: torch.nn.Module, seed: int) -> None:
    """A fresh Latte predicts zero; this one predicts something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_model(settings: Settings, folder: Path, kind: str, built: ModelSettings, seed: int = 0, **config: Any) -> Path:
    if isinstance(built, VideoModelSettings) and kind == "image_to_video":
        module: VideoNetwork | NeuralPrior = build_image_to_video(built, SHAPE, len(CLASSES))
    else:
        built = ModelSettings(**{name: getattr(built, name) for name in ModelSettings.model_fields})
        module = build_prior(built, SHAPE, len(CLASSES))
    randomise(module.backbone, seed)
    weights_hash, scaling_factor = vae_identity(settings.vae.path)
    described = {
        "kind": kind,
        "model": built.model_dump(),
        "bridge": settings.bridge.model_dump(),
        "latent_shape": SHAPE,
        "classes": CLASSES,
        "vae": {"path": settings.vae.path, "weights_hash": weights_hash, "scaling_factor": scaling_factor},
        "cache_fingerprint": "-",
        "steps": 7,
        "data": {"height": SIDE, "width": SIDE, "frames": FRAMES, "stride": 3},
        "prior_export": None,
    }
    return save_export(folder, module.backbone.state_dict(), described | config)


def tiny_settings(folder: Path, vae: Path, *overrides: str) -> Settings:
    layers = [read_yaml(ROOT / "ray_config.yaml"), read_yaml(ROOT / "jobs" / "recipes" / "demo.yaml")]
    lines = {
        "run.storage": folder,
        "run.name": "tiny",
        "data.path": folder / "videos",
        "data.frames": FRAMES,
        "data.height": SIDE,
        "data.width": SIDE,
        "vae.path": vae,
        "sample.steps": 3,
        "sample.count": 4,
        "sample.batch": 2,
    }
    given = [f"--{key}={value}" for key, value in lines.items()]
    return build([*layers, parse_overrides([*given, *overrides])])


def write_cache(settings: Settings) -> None:
    import pyarrow as pa

    encoder = EncodeClips(settings.vae, settings.data, num_cpus=1, num_gpus=0)
    rows: list[dict[str, Any]] = []
    for planned in list(plan_clips(settings.data)):
        if planned["split"] == "train" and len(rows) > 12:
            continue
        frames, span = decode_clip(planned, settings.data)
        latent = npy_bytes(encoder.encode([frames])[0])
        rows.append({**planned, **span, "latent": latent, "stage": None, "reason": None, "detail": None, "attempts": 1})
    labels = sorted({row["label"] for row in rows})
    write_spec(settings.cache_path, resolve_spec(settings.data, settings.vae, settings.text, labels))
    commit(settings.cache_path, pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA))


def load_run(settings: Settings, device: str = "cpu") -> LoadedModel:
    """The model that jobs/sample.py would sample with these settings."""
    exports = find_exports(settings.model_export, settings.bridge, settings.run.folder)
    return load_for_sampling(exports, settings.sample, settings.vae, settings.text, device)
