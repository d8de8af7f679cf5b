"""A caching job that is killed in the middle loses its open shards only; the next one completes the cache."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_vae import save_tiny_vae
from video_files import write_video

from pipeline.config import ROOT, load
from pipeline.data.cache import build_cache, open_cache
from pipeline.data.shards import read_latent

VIDEOS = 48


@pytest.mark.ray
def test_a_killed_job_is_completed_by_the_next(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    for index in range(VIDEOS):
        write_video(tmp_path / "videos" / f"{index}.mp4", 50)
    (tmp_path / "videos" / "bad.mp4").touch()
    arguments = ["--recipe", "demo", "--data.source", "folder", "--data.path", str(tmp_path / "videos")]
    arguments += ["--vae.path", save_tiny_vae(tmp_path / "vae"), "--run.storage", str(tmp_path / "storage")]
    settings = load([*arguments, "--cache.shard_clips", "4", "--cache.max_reject_fraction", "0.1"])[0]
    manifest = Path(settings.cache_path, "manifest")
    before = decoders()
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen(
            [sys.executable, "jobs/cache_latents.py", *arguments, "--cache.shard_clips", "4"],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 120
        while not (manifest.is_dir() and any(manifest.glob("*.parquet"))):
            assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.01)
        children = decoders() - before
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert children, "the job decodes in child processes"
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, "a child outlives the killed job"
    survived = {row["key"]: row for row in open_cache(settings.cache_path).rows}
    assert 0 < len(survived) < VIDEOS, "not killed in the middle"
    tars = {path: path.stat().st_mtime_ns for path in Path(settings.cache_path, "shards").glob("*.tar")}

    summary = build_cache(settings)
    assert (summary["planned"], summary["cached"], summary["rejected"]) == (VIDEOS + 1, VIDEOS, 1)
    assert summary["clips_this_run"] <= VIDEOS + 1 - len(survived), "nothing committed is made again"
    rows = open_cache(settings.cache_path).rows
    assert len({row["key"] for row in rows}) == len({row["video"] for row in rows}) == VIDEOS
    kept = {row["shard"] for row in survived.values()}
    assert all(path.stat().st_mtime_ns == time for path, time in tars.items() if path.name in kept)
    for row in rows:
        read_latent(settings.cache_path, row)  # every checksum is right


def decoders() -> set[psutil.Process]:
    """The decoding children below this process, whose Ray cluster the jobs use."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "pipeline.data.isolation" in process.cmdline():
                found.add(process)
    return found
