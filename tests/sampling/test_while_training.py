"""Clips of checkpoints while training goes on: they are made, they are the checkpoint's, and nothing waits for them."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_cache import tiny_settings, write_cache

from pipeline.sampling.outputs import decode_mp4
from pipeline.sampling.while_training import latest_checkpoint, sampled_while_training, state_of
from pipeline.settings import Settings
from pipeline.train.checkpoint import read_shares
from pipeline.train.history import HISTORY, read_history
from pipeline.train.run import prepare
from pipeline.train.worker import run_training

pytestmark = pytest.mark.ray
SAMPLED = ("--sample.while_training=2", "--sample.while_training_count=2", "--sample.steps=2", "--train.steps=4")


def train(settings: Settings) -> str:
    run = prepare("finetune", settings)
    with sampled_while_training(run):
        run_training(run)
    assert [row["step"] for row in read_history(f"{run.folder}/{HISTORY}")] == list(range(5))
    return run.folder


@pytest.mark.long
def test_checkpoints_are_sampled_beside_the_training(ray_cluster: None, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, *SAMPLED, "--cluster.train.workers=1", "--train.ema_decay=0.5")
    info = write_cache(settings).info
    folder = train(settings)
    samples = sorted(Path(folder, "samples").iterdir())
    assert {path.suffix for path in samples} == {".mp4", ".png"} and samples[0].stem in ("step-0000002", "step-0000004")
    frames = decode_mp4(samples[0].read_bytes())
    assert frames.shape[0] == 4 and frames.std() > 1
    latest = latest_checkpoint(folder)
    assert latest is not None and latest.step == 4
    state = state_of(settings, info, read_shares(Path(latest.address)))
    exported = load_file(f"{folder}/export/model.safetensors")
    assert state.keys() == exported.keys()
    assert all(torch.equal(value, exported[name]) for name, value in state.items())  # of the average, as asked


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


def test_a_checkpoint_that_is_still_written_is_not_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "one"
    folder.mkdir(parents=True)
    assert latest_checkpoint(str(tmp_path)) is None
    for rank in range(2):
        (folder / f"state-{rank:05d}-of-00002.safetensors").write_bytes(np.zeros(3).tobytes())
        (folder / f"state-{rank:05d}-of-00002.json").write_text('{"step": 7}')
        found = latest_checkpoint(str(tmp_path))
        assert (found is not None) == (rank == 1)
    assert found is not None and found.step == 7 and len(found.files) == 4
