"""Clips of checkpoints while training goes on: they are made, they are the checkpoint's, and nothing waits for them."""

import logging
from pathlib import Path

import pytest
import torch
from helpers.tiny_cache import tiny_settings, write_cache
from safetensors.torch import load_file

from pipeline.data.cache.info import require_spec
from pipeline.errors import UserError
from pipeline.media import decode_mp4
from pipeline.sampling.while_training import sampled_while_training
from pipeline.settings import Settings
from pipeline.storage.files import read_json
from pipeline.train.export.from_checkpoint import choose_checkpoint, export_of_checkpoint
from pipeline.train.plan import prepare
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import read_history
from pipeline.train.run import run_training
from pipeline.train.spec import train_spec

pytestmark = pytest.mark.ray
SAMPLED = ("--sample.while_training=2", "--sample.while_training_count=2", "--sample.steps=2", "--train.steps=4")


def train(settings: Settings) -> str:
    run = prepare("finetune", settings)
    with sampled_while_training(run):
        run_training(run)
    assert [row["step"] for row in read_history(f"{run.spec.folder}/{HISTORY}")] == list(range(5))
    return run.spec.folder


@pytest.mark.long
def test_checkpoints_are_sampled_beside_the_training(ray_cluster: None, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, *SAMPLED, "--cluster.train.workers=1", "--train.ema_decay=0.5")
    write_cache(settings)
    folder = train(settings)
    samples = sorted(Path(folder, "samples").iterdir())
    assert {path.suffix for path in samples} == {".mp4", ".png"} and samples[0].stem in ("step-0000002", "step-0000004")
    frames = decode_mp4(samples[0].read_bytes())
    assert frames.shape[0] == 4 and frames.std() > 1
    spec = train_spec("finetune", settings, require_spec(settings.cache_path))
    again = export_of_checkpoint(spec, choose_checkpoint(folder, None))
    assert again.endswith("finetune/export-step-0000004")
    state, exported = (load_file(f"{place}/model.safetensors") for place in (again, f"{folder}/export"))
    assert state.keys() == exported.keys()
    assert all(torch.equal(value, exported[name]) for name, value in state.items())  # of the average, as asked
    configs = [read_json(f"{place}/config.json") for place in (again, f"{folder}/export")]
    assert configs[0] == configs[1]
    with pytest.raises(UserError, match=r"sample.checkpoint = 3: .* steps 2, 4; choose one"):
        choose_checkpoint(folder, 3)


@pytest.mark.long
def test_training_waits_for_no_clips_and_a_failure_is_a_line(
    ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tiny_settings(
        tmp_path, *SAMPLED, "--sample.sampler=ddim", "--cluster.train.workers=1", "--cluster.sample.num_cpus=2"
    )
    write_cache(settings)
    with caplog.at_level(logging.INFO, "samples"):
        folder = train(settings)  # of two CPUs the worker has one: no room before the end, nor a bridge's sampler
    assert not Path(folder, "samples").exists() and Path(folder, "export").exists()
    said = [record.message for record in caplog.records if record.name == "samples"]
    assert len(said) == 1 and "no clips were made" in said[0] and "ddim" in said[0], said
