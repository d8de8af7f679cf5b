"""Sampling with real Ray actors: what is written, what is done again, what is left out."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.tiny_models import SIDE, load_run, save_model, tiny_model, tiny_settings
from PIL import Image

from pipeline.errors import UserError
from pipeline.media import decode_mp4
from pipeline.sampling.batches import make_clip_batch
from pipeline.sampling.run import make_plan, plan_sampling, run_sampling
from pipeline.sampling.write import TrueClips, sample_batch
from pipeline.settings import ROOT, Settings

pytestmark = pytest.mark.ray


def with_sample(settings: Settings, name: str, **values: object) -> Settings:
    """The same models and cache for another run."""
    return settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"name": name}),
            "cache": settings.cache.model_copy(update={"path": settings.cache_path}),
            "bridge": settings.bridge.model_copy(update={"prior_path": settings.prior_export}),
            "sample": settings.sample.model_copy(update={"model_path": settings.model_export, **values}),
        }
    )


def contents(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(settings.run.folder, "samples").iterdir()}


def clips(settings: Settings) -> dict[str, bytes]:
    return {name: content for name, content in contents(settings).items() if not name.endswith(".json")}


def generate_alone(settings: Settings, folder: Path) -> None:
    """Generate all batches in this process, the last one first."""
    plan, _, cache = make_plan(settings)
    assert cache
    clips = TrueClips(cache.path, cache.spec, settings.data)
    for batch in reversed(plan.batches):
        make_clip_batch(
            partial(sample_batch, load_run(settings), clips, settings.run.seed), batch, plan.fingerprints, str(folder)
        )


def test_held_out_clips_then_nothing_to_do_then_resume(
    tiny_run: Settings, ray_cluster: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "sample")
    summary = run_sampling(tiny_run)
    folder = Path(tiny_run.run.folder, "samples")
    assert summary["count"] == 4
    assert summary["source"] == "held_out"
    for name in ("psnr_first_frame", "motion_ratio_vae", "prior_latent_error", "replicated_latent_error"):
        assert summary["metrics"][name]["n"] == 4
    for key in summary["items"]:
        record = json.loads((folder / f"{key}.json").read_text())
        assert record["true"] and not record["note"]
        assert decode_mp4((folder / f"{key}.generated.mp4").read_bytes()).shape == (4, SIDE, SIDE, 3)
        members = {path.name.split(".", 1)[1] for path in folder.glob(f"{key}.*")}
        assert members == {"json", "image.png", "reconstruction.png", "generated.mp4", "prior.mp4", "true.mp4"}
    before = contents(tiny_run)
    assert "grid.mp4" in before

    assert run_sampling(tiny_run)["made_this_run"] == 0
    assert "nothing to do" in caplog.text
    assert contents(tiny_run) == before

    alone = tmp_path / "alone"
    generate_alone(tiny_run, alone)
    found = {path.name: path.read_bytes() for path in alone.iterdir() if path.suffix != ".json"}
    assert found == {name: before[name] for name in found}
    assert len(found) == 4 * 5

    first = summary["items"][0]
    lost = folder / f"{first}.json"  # as if the job had been killed before it was written
    lost.unlink()
    assert make_plan(tiny_run)[0].pending == 1
    assert run_sampling(tiny_run)["made_this_run"] == 1
    assert {name: before[name] for name in clips(tiny_run)} == clips(tiny_run)

    other = tiny_run.model_copy(update={"run": tiny_run.run.model_copy(update={"seed": 1})})
    assert "are made again" in plan_sampling(other)


@pytest.mark.long
def test_one_worker_two_workers_and_a_kill_give_the_same_files(
    tiny_run: Settings, ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    def with_actors(name: str, actors: int) -> Settings:
        settings = with_sample(tiny_run, name, count=None, batch=1, gif=True)
        pool = settings.cluster.sample.model_copy(update={"actors": actors})
        return settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"sample": pool})})

    one, other = with_actors("one", 1), with_actors("other", 2)
    items = run_sampling(one)["items"]
    assert len(items) >= 6

    (tmp_path / "other.yaml").write_text(other.to_yaml())
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        [sys.executable, "jobs/sample.py", "--config", str(tmp_path / "other.yaml")], cwd=ROOT, env=environment
    )
    folder, deadline = Path(other.run.folder, "samples"), time.monotonic() + 120
    while not list(folder.glob("*.json")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not (folder / "summary.json").exists(), "not killed in the middle"
    assert 0 < make_plan(other)[0].pending < len(items)
    run_sampling(other)
    # but for how long it took
    assert clips(other) == clips(one) and len(clips(one)) == 6 * len(items) + 2
    records = [[json.loads(contents(each)[f"{key}.json"]) for key in items] for each in (one, other)]
    for record in (*records[0], *records[1]):
        record.pop("seconds")
    assert records[0] == records[1]


def test_file_that_is_no_image_is_left_out_of_a_folder(
    tiny_run: Settings, ray_cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), (10, 200, 40)).save(stream, "JPEG")
    for name in ("bounce_1", "other"):
        (tmp_path / name).write_bytes(stream.getvalue())
    (tmp_path / "broken.png").write_text("no picture")
    own = with_sample(tiny_run, "own", images=str(tmp_path), count=None)
    summary = run_sampling(own)
    assert summary["count"] == 2
    assert summary["refused"] == [{"name": "broken.png", "reason": "not an image"}]
    assert "broken.png: not an image" in caplog.text
    assert "motion_ratio" not in summary["metrics"]
    assert not list(Path(own.run.folder, "samples").glob("*.true.mp4"))
    assert run_sampling(own)["made_this_run"] == 0


def test_wrong_vae_cache_and_missing_cache_are_refused_before_anything_is_written(
    tiny_run: Settings, tmp_path: Path, tiny_vae: Path
) -> None:
    copied = tmp_path / "vae"
    shutil.copytree(tiny_vae, copied)
    import torch
    from diffusers import AutoencoderKL

    changed = AutoencoderKL.from_pretrained(copied)
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    changed.save_pretrained(copied)
    other = tiny_settings(tmp_path, copied)
    save_model(other, tmp_path / "model", "image_to_video", tiny_model(), bridge={"prior": "replicated"})
    wrong_vae = with_sample(tiny_run, "wrong", model_path=str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"set vae\.path to that VAE"):
        run_sampling(wrong_vae)
    same_vae = wrong_vae.model_copy(update={"vae": other.vae})
    with pytest.raises(UserError, match=r"has latents .* was trained on"):
        run_sampling(same_vae)
    nowhere = with_sample(tiny_run, "wrong").model_copy(
        update={"cache": tiny_run.cache.model_copy(update={"path": str(tmp_path / "no-cache")})}
    )
    with pytest.raises(UserError, match="no cache there"):
        run_sampling(nowhere)
    assert not Path(wrong_vae.run.folder).exists()
