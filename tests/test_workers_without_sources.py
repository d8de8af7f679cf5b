"""Workers read a cache where the VAE, text encoder and videos do not exist: the driver resolved all that they need."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings, write_cache
from helpers.tiny_text import save_tiny_clip
from helpers.tiny_vae import save_tiny_vae
from helpers.video_files import write_video

from pipeline.models.build import load_model
from pipeline.sampling.run import run_sampling
from pipeline.settings import ROOT, Settings
from pipeline.train.plan import prepare
from pipeline.train.run import run_training

READ_A_BATCH = """
import json, sys
from pipeline import open_cache
from pipeline.data.load.batches import make_batch
from pipeline.data.load.reader import Source
cache = open_cache(sys.argv[1])
source = Source(cache, cache.select("train"), cache.spec.classes, 0.0, 0, True)
latents = make_batch(source, [(0, 0), (1, 1), (2, 2)], "train", 0).latents
print(json.dumps([list(latents.z0.shape), list(latents.text.shape), latents.label.tolist()]))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A cache that was made from folders of videos, a VAE and a text encoder, all below tmp_path/sources."""
    sources = tmp_path / "sources"
    write_video(sources / "videos" / "0.mp4", 8)
    lines = {
        "data.source": "folder",
        "data.path": sources / "videos",
        "vae.path": save_tiny_vae(sources / "vae"),
        "text.path": save_tiny_clip(sources / "text"),
        "text.max_length": 7,
    }
    made = tiny_settings(tmp_path / "storage", *(f"--{key}={value}" for key, value in lines.items()))
    write_cache(made)
    return made


def hide(settings: Settings, *names: str) -> None:
    """Move folders of the sources away."""
    sources = Path(settings.data.path).parent
    for name in names:
        (sources / name).rename(sources.parent / f"hidden-{name}")


def test_a_process_reads_a_batch_from_a_copy_of_the_cache_alone(settings: Settings, tmp_path: Path) -> None:
    copy = shutil.copytree(settings.cache_path, tmp_path / "elsewhere" / "cache")
    hide(settings, "videos", "vae", "text")
    shutil.rmtree(settings.cache_path)
    command = [sys.executable, "-c", READ_A_BATCH, str(copy)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    z0, text, labels = json.loads(done.stdout)
    assert (z0, text) == ([3, 4, 4, 4, 4], [3, 7, 16]) and set(labels) <= {0, 1}


@pytest.mark.ray
def test_workers_train_and_sample_from_the_cache_alone(settings: Settings, ray_cluster: None, tmp_path: Path) -> None:
    """Training workers need none of the sources. Sampling decodes, so it gets a VAE of the same weights elsewhere."""
    run = prepare("finetune", settings)
    hide(settings, "videos", "vae", "text")
    summary = run_training(run)
    assert summary["steps"] == 6 and load_model(run.spec.export)[1]["steps"] == 6

    vae = settings.vae.model_copy(update={"path": str(tmp_path / "hidden-vae")})
    text = settings.text.model_copy(update={"path": None})
    sample = settings.sample.model_copy(update={"count": 2, "steps": 2, "batch": 2})
    sampled = run_sampling(settings.model_copy(update={"vae": vae, "text": text, "sample": sample}))
    assert sampled["count"] == 2 and sampled["source"] == "held_out"
    (note,) = sampled["notes"]
    assert "the source video could not be read again (missing)" in note
