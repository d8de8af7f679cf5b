"""The chain: cached + rejected = planned, nothing twice, nothing half-written, nothing made with other settings."""

import json
import logging
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.tiny_vae import save_tiny_vae
from helpers.video_files import write_video
from PIL import Image

from pipeline.data.cache import run as cache_run
from pipeline.data.cache.info import resolve_spec
from pipeline.data.cache.lease import Lease
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.pipeline import chain
from pipeline.data.cache.run import build_cache, plan_cache
from pipeline.data.cache.shards import read_latent
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.plan.clips import plan_table
from pipeline.errors import JobFailed, UserError
from pipeline.models.files.vae import vae_identity
from pipeline.models.vae import load_vae
from pipeline.settings import ROOT, Settings, load


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten good videos and three that are not."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(10):
        write_video(folder / f"{index}.mp4", 47 + index)
    write_video(folder / "short.mp4", 7)
    (folder / "empty.mp4").touch()
    (folder / "text.mkv").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_vae(tmp_path_factory.mktemp("vae"))


def settings(videos: Path, vae: str, storage: Path, *more: str) -> Settings:
    arguments = ["--recipe", "demo", "--data.source", "folder", "--data.path", str(videos), "--vae.path", vae]
    arguments += [
        "--data.stride=3",
        "--run.storage",
        str(storage),
        "--cache.shard_clips",
        "4",
        "--cache.max_reject_fraction",
        "0.5",
    ]
    return load([*arguments, *more])[0]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def built(ray_cluster: None, videos: Path, vae: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A finished cache of the videos, which no test changes."""
    chosen = settings(videos, vae, tmp_path_factory.mktemp("storage"))
    summary = build_cache(chosen)
    assert (summary["planned"], summary["cached"], summary["rejected"]) == (13, 10, 3)
    return chosen


@pytest.mark.ray
def test_every_planned_clip_is_cached_or_rejected_with_its_reason(built: Settings) -> None:
    cache = open_cache(built.cache_path)
    assert sorted(row["video"] for row in cache.rows) == [f"{index}.mp4" for index in range(10)]
    assert len({row["key"] for row in cache.rows}) == 10
    rejected = {row["video"]: row for row in cache.rejected.to_pylist()}
    assert {name: row["reason"] for name, row in rejected.items()} == {
        "short.mp4": "too_short",
        "empty.mp4": "unreadable",
        "text.mkv": "unreadable",
    }
    assert all(row["stage"] == "decode" and row["attempts"] == 1 and row["detail"] for row in rejected.values())
    summary = json.loads(Path(built.cache_path, "summary.json").read_text())
    assert summary["rejects"] == {"unreadable": 2, "too_short": 1}
    assert summary["clips_per_second"] > 0 and summary["bytes"] == sum(row["length"] for row in cache.rows)
    assert summary["shards"] == len(list(Path(built.cache_path, "shards").iterdir()))
    assert {row["split"] for row in cache.rows} == {"train", "test"}
    assert len(cache.select("train")) + len(cache.select("test")) == 10


@pytest.mark.ray
def test_a_job_that_another_overtook_finds_nothing_to_do(
    built: Settings, videos: Path, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = settings(videos, vae, tmp_path)
    first_in_line = cache_run.only_writer

    def after_another(path: str) -> AbstractContextManager[Lease]:
        shutil.copytree(built.cache_path, path, dirs_exist_ok=True)
        return first_in_line(path)

    monkeypatch.setattr(cache_run, "only_writer", after_another)
    summary = build_cache(late)
    assert (summary["planned"], summary["cached"], summary["rejected"]) == (13, 10, 3)
    assert summary["clips_this_run"] == 0


@pytest.mark.ray
def test_latents_are_the_posterior_of_the_decoded_frames(built: Settings) -> None:
    cache = open_cache(built.cache_path)
    assert cache.spec.latent_shape == [16, 4, 8, 8]
    vae = load_vae(built.vae.path)
    for row in cache.rows[:3]:
        frames, span = decode_clip(row, built.data)
        assert span["key"] == row["key"]
        latent = read_latent(cache.path, row)
        assert latent.dtype == np.float16 and latent.shape == (2, 16, 4, 8, 8)
        mean, logvar = vae.encode(torch.from_numpy(frames))
        assert np.allclose(latent[0], mean, atol=2e-3) and np.allclose(latent[1], logvar, atol=2e-2)


@pytest.mark.ray
def test_decoding_is_not_fused_into_the_vae_actors(built: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    chain(plan_table(built.data), built, resolve_spec(built.data, built.vae, built.text)).explain()
    stages = capsys.readouterr().out.rsplit("Physical Plan (Optimized)")[-1]
    assert "TaskPoolMapOperator[MapBatches(decode_clips)]" in stages
    assert "ActorPoolMapOperator[MapBatches(EncodeClips)]" in stages


@pytest.mark.ray
def test_shards_are_cut_by_the_commits_and_not_by_tasks_of_their_own(
    built: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fusion that Ray Data does, and that `chain` relies on; the sizes of the shards show that it cuts."""
    chain(plan_table(built.data), built, resolve_spec(built.data, built.vae, built.text)).explain()
    stages = capsys.readouterr().out.rsplit("Physical Plan (Optimized)")[-1]
    assert "TaskPoolMapOperator[MapBatches(commit_clips)->StreamingRepartition[" in stages
    assert stages.count("StreamingRepartition") == 1
    parts = [
        pq.read_table(part) for folder in ("manifest", "rejects") for part in (Path(built.cache_path, folder)).iterdir()
    ]
    shards = [part.num_rows for part in parts if "shard" in part.column_names]
    assert sum(part.num_rows for part in parts) == 13 and max(shards) <= 4 and len(shards) <= 4


def test_a_second_run_does_nothing_and_says_so(built: Settings, caplog: pytest.LogCaptureFixture) -> None:
    before = contents(Path(built.cache_path))
    with caplog.at_level(logging.INFO):
        summary = build_cache(built)
    assert "nothing to do: 10 clips already cached" in caplog.text
    assert summary["clips_this_run"] == 0 and summary["cached"] == 10
    assert contents(Path(built.cache_path)) == before


def test_finding_nothing_to_do_imports_no_ray_and_no_torch(built: Settings) -> None:
    script = f"""
import sys
from pipeline.settings import load
from pipeline.data.cache.run import build_cache
build_cache(load({_arguments(built)!r})[0])
assert not {{"ray", "torch", "diffusers", "transformers"}} & set(sys.modules), "too much was imported"
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=60)


def _arguments(built: Settings) -> list[str]:
    arguments = ["--recipe", "demo", "--data.source", "folder", "--data.path", built.data.path]
    arguments += ["--vae.path", built.vae.path, "--run.storage", built.run.storage]
    return [*arguments, "--data.stride=3", "--cache.max_reject_fraction", "0.5"]


def test_other_settings_are_refused_and_nothing_is_written(built: Settings, vae: str, tmp_path: Path) -> None:
    before = contents(Path(built.cache_path))
    videos, storage = Path(built.data.path), Path(built.run.storage)
    with pytest.raises(UserError, match=r"data.stride: cache has 3, settings say 2.*--cache.path"):
        build_cache(settings(videos, vae, storage, "--data.stride", "2"))
    with pytest.raises(UserError, match=r"vae.path .hash of its weights.: cache has"):
        build_cache(settings(videos, save_tiny_vae(tmp_path, seed=1), storage))
    with pytest.raises(UserError, match="no such folder"):
        build_cache(settings(tmp_path / "gone", vae, tmp_path / "new"))
    with pytest.raises(UserError, match=r"vae.path = .*no AutoencoderKL"):
        build_cache(settings(videos, str(tmp_path / "no_vae"), tmp_path / "new"))
    assert contents(Path(built.cache_path)) == before and not (tmp_path / "new").exists()


def test_too_many_rejected_clips_fail_the_job_and_keep_what_is_good(built: Settings, vae: str) -> None:
    strict = settings(Path(built.data.path), vae, Path(built.run.storage), "--cache.max_reject_fraction", "0.2")
    with pytest.raises(JobFailed, match=r"23.1% of the clips .* 0.2 .2 unreadable, 1 too_short.; the 10 good"):
        build_cache(strict)
    assert len(open_cache(strict.cache_path).rows) == 10


def test_the_plan_says_what_is_left(built: Settings, vae: str, tmp_path: Path) -> None:
    assert "10 cached, 3 rejected before, 0 to do" in plan_cache(built)
    new = settings(Path(built.data.path), vae, tmp_path)
    assert "0 cached, 0 rejected before, 13 to do: 0.2 MiB" in plan_cache(new) and "in 4 shards" in plan_cache(new)
    assert not any(tmp_path.iterdir())


def test_inspect_cache_tells_and_draws_what_is_there(built: Settings, tmp_path: Path) -> None:
    shutil.copytree(built.cache_path, tmp_path / "cache")
    command = [sys.executable, "jobs/inspect_cache.py", *_arguments(built), "--cache.path", str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "10 clips" in done.stdout and "too_short" in done.stdout
    assert min(Image.open(tmp_path / "cache" / "contact_sheet.png").size) > 64


@pytest.mark.ray
@pytest.mark.long
def test_rejected_clips_are_tried_again_only_when_asked(built: Settings, vae: str, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(built.data.path, videos)
    shutil.copytree(built.cache_path, tmp_path / "storage" / "demo" / "cache")
    short = settings(videos, vae, tmp_path / "storage", "--cache.retry_rejects", "[too_short, crashed]")
    assert "2 rejected before, 1 to do" in plan_cache(short)
    summary = build_cache(short)
    assert (summary["clips_this_run"], summary["cached"], summary["rejects"]) == (
        1,
        10,
        {"unreadable": 2, "too_short": 1},
    )
    again = settings(videos, vae, tmp_path / "storage", "--cache.retry_rejects", "all")
    shutil.copyfile(videos / "3.mp4", videos / "text.mkv")  # its size is part of what it is: a new video
    summary = build_cache(again)
    assert (summary["clips_this_run"], summary["cached"], summary["rejected"]) == (3, 11, 2)
    assert build_cache(settings(videos, vae, tmp_path / "storage"))["clips_this_run"] == 0


@pytest.mark.ray
def test_new_videos_are_the_only_ones_made(built: Settings, vae: str, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(built.data.path, videos)
    shutil.copytree(built.cache_path, tmp_path / "storage" / "demo" / "cache")
    chosen = settings(videos, vae, tmp_path / "storage")
    before = contents(Path(chosen.cache_path, "shards"))
    write_video(videos / "later" / "new.mp4", 50)
    (videos / "later" / "bad.mp4").touch()
    summary = build_cache(chosen)
    assert (summary["clips_this_run"], summary["cached"], summary["rejected"]) == (2, 11, 4)
    after = contents(Path(chosen.cache_path, "shards"))
    assert before.items() <= after.items() and len(after) == len(before) + 1


def test_identity_from_the_files_is_that_of_the_loaded_vae(vae: str, videos: Path, tmp_path: Path) -> None:
    loaded = load_vae(vae)
    assert vae_identity(vae) == (loaded.weights_hash, loaded.scaling_factor)
