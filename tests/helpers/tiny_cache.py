"""A latent cache in the true format, without videos: its latents are slow waves, which a tiny model can learn."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.cache.commit import commit
from pipeline.data.cache.info import resolve_spec, write_spec
from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.shards import npy_bytes
from pipeline.schema import ENCODED_SCHEMA, NULL_TEXT
from pipeline.settings import Settings, load
from pipeline.storage.files import write_bytes

CLASSES = ["bounce", "slide"]
MODEL = {"size": "null", "hidden_size": 16, "depth": 2, "num_heads": 2}
TRAIN = {
    "steps": 6,
    "global_batch": 4,
    "micro_batch": 1,
    "warmup_steps": 2,
    "checkpoint_every": 2,
    "log_every": 1,
    "validate_every": 3,
    "validate_clips": 3,
}


def tiny_settings(storage: Path, *more: str) -> Settings:
    """A tiny replicated-prior bridge over 4 x 32 x 32 clips, trained by two workers; `more` are overrides."""
    return load(tiny_arguments(storage, *more))[0]


def tiny_arguments(storage: Path, *more: str) -> list[str]:
    """The same, as the command line of a job."""
    lines = {"run.storage": storage, "run.name": "tiny", "data.frames": 4, "data.height": 32, "data.width": 32}
    lines |= {"train.init": "null", "bridge.saf": "false", "bridge.prior": "replicated", "cluster.train.num_cpus": 1}
    for section in ("", "prior."):
        lines |= {f"{section}model.{key}": value for key, value in MODEL.items()}
        lines |= {f"{section}train.{key}": value for key, value in TRAIN.items()}
    return ["--recipe", "demo", *(f"--{key}={value}" for key, value in lines.items()), *more]


def write_cache(settings: Settings, clips: int = 10, held_out: int = 3, seed: int = 0) -> Cache:
    """Commit `clips` training and `held_out` test clips in two shards to settings.cache_path."""
    spec = resolve_spec(settings.data, settings.vae, settings.text, CLASSES)
    write_spec(settings.cache_path, spec)
    rows = [
        _row(number, "train" if number < clips else "test", spec.latent_shape, seed)
        for number in range(clips + held_out)
    ]
    if spec.text_shape is not None:
        random = np.random.default_rng([seed, 1])
        for row in rows:
            row["text"] = npy_bytes(random.standard_normal(spec.text_shape).astype(np.float16))
        write_bytes(f"{settings.cache_path}/{NULL_TEXT}", npy_bytes(np.zeros(spec.text_shape, np.float16)))
    for part in (rows[::2], rows[1::2]):
        commit(settings.cache_path, pa.Table.from_pylist(part, schema=ENCODED_SCHEMA))
    return open_cache(settings.cache_path)


def _row(number: int, split: str, shape: list[int], seed: int) -> dict[str, object]:
    random = np.random.default_rng([seed, number])
    frames, channels, height, width = shape
    phase = random.uniform(0, 6, (channels, height, width)) + 0.3 * np.arange(frames)[:, None, None, None]
    posterior = np.stack([5 * np.sin(phase), np.full(phase.shape, -6.0)]).astype(np.float16)
    stream = io.BytesIO()
    np.save(stream, posterior)
    return {
        "uri": f"/videos/{number}.mp4",
        "video": f"{number}.mp4",
        "size": 1000 + number,
        "split": split,
        "label": CLASSES[number % 2],
        "caption": "",
        "ordinal": 0,
        "clips": 1,
        "flip": False,
        "key": f"{random.integers(2**32):08x}-{number}",
        "source_hash": "0" * 32,
        "start": 0,
        "stride": 3,
        "span": 46,
        "source_frames": 46,
        "source_fps": 24.0,
        "source_height": 64,
        "source_width": 64,
        "decoder": "pyav",
        "latent": stream.getvalue(),
        "stage": None,
        "reason": None,
        "detail": None,
        "attempts": 1,
    }
