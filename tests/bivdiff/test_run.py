"""The job itself: planned, killed and run again, on real Ray actors."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_bivdiff import Folders, settings_of, write_list
from helpers.tiny_text import save_tiny_clip
from helpers.tiny_vae import save_tiny_vae

from pipeline.bivdiff.models import load_models
from pipeline.bivdiff.run import load_metric_networks, make_plan, plan_bivdiff, run_bivdiff
from pipeline.bivdiff.work import make_clips
from pipeline.errors import UserError
from pipeline.sampling.batches import make_clip_batch
from pipeline.settings import ROOT, Settings

ROWS: list[dict[str, str]] = [{}, {"mask": "narrow.png"}, *({"prompt": f"a dog {number}"} for number in range(4))]


def clips(settings: Settings) -> dict[str, bytes]:
    folder = Path(settings.run.folder, "bivdiff")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".mp4"}


@pytest.mark.ray
@pytest.mark.long
def test_killed_and_run_again_gives_the_files_that_one_process_gives(
    folders: Folders, tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    caplog.set_level(logging.INFO)
    items = write_list(folders, "run.csv", *ROWS)
    settings = settings_of(folders, tmp_path, "inpainting", items, alpha=[0.1, 1], **{"cluster.sample.actors": 1})
    (tmp_path / "job.yaml").write_text(settings.to_yaml())
    job = [sys.executable, "jobs/bivdiff.py", "--config", str(tmp_path / "job.yaml")]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    folder, deadline = Path(settings.run.folder, "bivdiff"), time.monotonic() + 240
    process = subprocess.Popen(job, cwd=ROOT, env=environment)
    while not list(folder.glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "summary.json").exists(), "not killed in the middle"
    assert 0 < len(make_plan(settings).done) < 10

    again = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["count"] == 10 and summary["refused"] == [
        {"name": "source.mp4", "reason": "mask is 56 x 48, the video 64 x 48; give one size"}
    ]
    assert again.stderr.count("give one size; left out") == 1
    assert {alpha: values["frame_consistency_detector"]["n"] for alpha, values in summary["metrics"].items()} == {
        "0.1": 5,
        "1": 5,
    }
    assert "BIVDiff" in Path(settings.run.folder, "report.html").read_text()

    alone = tmp_path / "alone"
    plan, models, networks = make_plan(settings), load_models(settings), load_metric_networks(settings.evaluate, "cpu")
    work = partial(make_clips, models, networks, settings.bivdiff, settings.data, settings.run.seed)
    for row in reversed(plan.batches):
        make_clip_batch(work, row, plan.fingerprints, str(alone))
    found = {path.name: path.read_bytes() for path in alone.glob("*.mp4")}
    assert len(found) == 10 * 4
    assert found == {name: content for name, content in clips(settings).items() if not name.startswith("grid")}

    assert run_bivdiff(settings)["made_this_run"] == 0
    assert "nothing to do: 10 clips" in caplog.text


@pytest.mark.ray
@pytest.mark.long
def test_models_that_do_not_go_together_end_the_job_in_one_line(
    folders: Folders, tmp_path: Path, ray_cluster: None
) -> None:
    other = tmp_path / "video"
    shutil.copytree(folders.video, other)
    save_tiny_vae(other / "vae", seed=7)
    items = write_list(folders, "apart.csv", {})
    settings = settings_of(folders, tmp_path, "controlnet", items, video_model=str(other))
    with pytest.raises(UserError, match=r"latents of a picture are \d+% from those of") as problem:
        run_bivdiff(settings)
    assert "\n" not in str(problem.value)


def test_plan_says_what_would_be_done_and_writes_nothing(folders: Folders, tmp_path: Path) -> None:
    items = write_list(folders, "plan.csv", {}, {"video": "gone.mp4"})
    plan = plan_bivdiff(settings_of(folders, tmp_path, "t2i_adapter", items, alpha=[0, 0.5]))
    assert "Plan: 2 clips of 1 rows, 0 of them made before; 1 rows left out" in plan
    assert "alpha 0, 0.5" in plan and "left out: line 3: gone.mp4" in plan
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("image", r"bivdiff\.image_model = .*: no such folder here"),
        ("image/unet", r"bivdiff\.image_model = .*: its unet/ is missing"),
        (
            "image/unet/diffusion_pytorch_model.safetensors",
            r"image_model: no weights \(\*\.safetensors\) in .*unet; .* pickles",
        ),
        ("controlnet/diffusion_pytorch_model.safetensors", r"bivdiff\.adapter: no weights"),
        ("video/model_index.json", r"bivdiff\.video_model = .*: no pipeline of diffusers there"),
    ],
)
def test_missing_weights_are_one_line(folders: Folders, tmp_path: Path, missing: str, words: str) -> None:
    names = ("image", "controlnet", "video")
    for name in names:
        shutil.copytree(getattr(folders, name), tmp_path / name, copy_function=os.link)
    gone = tmp_path / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    items = write_list(folders, "missing.csv", {})
    models = {"image_model": "image", "adapter": "controlnet", "video_model": "video"}
    settings = settings_of(
        folders, tmp_path, "controlnet", items, **{key: str(tmp_path / name) for key, name in models.items()}
    )
    with pytest.raises(UserError, match=words) as problem:
        make_plan(settings)
    assert "\n" not in str(problem.value)


def test_other_weights_settings_or_words_are_made_again(folders: Folders, tmp_path: Path) -> None:
    def fingerprint(**values: object) -> str:
        plan = make_plan(settings_of(folders, tmp_path, "controlnet", write_list(folders, "f.csv", {}), **values))
        return next(iter(plan.fingerprints.values()))

    first = fingerprint()
    assert first == fingerprint(**{"run.name": "other", "cluster.sample.actors": 3, "data.max_videos": 5})
    moved = tmp_path / "moved"
    shutil.copytree(folders.controlnet, moved)
    assert first == fingerprint(adapter=str(moved)), "the same weights elsewhere"
    weights = moved / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    others: list[dict[str, Any]] = [
        {"adapter": str(moved)},
        {"guidance": 3},
        {"run.seed": 1},
        {"data.stride": 2},
        {"alpha": 0.5},
    ]
    assert len({first, *(fingerprint(**values) for values in others)}) == 1 + len(others)


def test_prompt_that_is_no_class_of_an_own_model_is_rejected(folders: Folders, tmp_path: Path) -> None:
    def settings(*rows: dict[str, str], **values: object) -> Settings:
        clip = {"data.frames": 16, "data.height": 64, "data.width": 64, "video_model": "shipped:teacher", **values}
        return settings_of(folders, tmp_path, "controlnet", write_list(folders, "c.csv", *rows), **clip)

    plan = make_plan(settings({}, {"prompt": "slide left"}))
    assert [clip["prompt"] for row in plan.batches for clip in row] == ["slide left"]
    assert re.match(
        r"bivdiff\.video_model takes no text, but Bounce, .*; name one in video_prompt", plan.rejected[0].reason
    )
    with pytest.raises(UserError, match="none of its 1 prompts is a class"):
        make_plan(settings({}))
    with pytest.raises(UserError, match=r"data\.frames = 8: bivdiff\.video_model shipped:teacher has clips of 16"):
        make_plan(settings({"prompt": "spin"}, **{"data.frames": 8}))


def test_clip_measures_consistency_and_alignment(folders: Folders, tmp_path: Path) -> None:
    """The CLIP folder of evaluate.clip measures the clip, and the frames before smoothing too."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    save_tiny_clip(tmp_path)
    text = CLIPTextConfig.from_pretrained(tmp_path)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)).save_pretrained(
        tmp_path
    )
    items = write_list(folders, "m.csv", {})
    settings = settings_of(
        folders, tmp_path, "controlnet", items, **{"evaluate.clip": tmp_path, "evaluate.detector": None}
    )
    networks = load_metric_networks(settings.evaluate, "cpu")
    row = make_plan(settings).batches[0]
    [(record, _)], _ = make_clips(load_models(settings), networks, settings.bivdiff, settings.data, 0, row)
    found = record["metrics"]
    assert found.keys() == {"frame_consistency", "textual_alignment", "frame_consistency_of_frames"}
    assert all(-1 <= value <= 1 for value in found.values())
