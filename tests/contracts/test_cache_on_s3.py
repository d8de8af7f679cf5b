"""A job on a cluster without credentials caches from S3 to S3 while requests fail."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import torch
from helpers.faulty_s3 import FaultyS3, Plan, faulty_s3
from helpers.tiny_vae import save_tiny_vae
from helpers.video_files import write_video

from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.run import build_cache
from pipeline.data.cache.shards import read_latent
from pipeline.data.load.batches import training_batches
from pipeline.data.load.node_cache import keep_locally
from pipeline.data.load.reader import Source
from pipeline.settings import ROOT, load
from pipeline.storage.files import entries, read_bytes

pytestmark = [pytest.mark.ray, pytest.mark.long]
VIDEOS = 10
SECRET = "not-to-be-seen-0815"


class OnS3(NamedTuple):
    service: FaultyS3
    arguments: list[str]  # of the job, with source and cache on S3
    output: str  # what the job said
    local: list[str]  # of the same job, with local folders
    met: dict[str, int]  # the faults that the job met


@pytest.fixture(scope="module")
def access() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        yield patch


@pytest.fixture(scope="module")
def cached(ray_cluster: None, access: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnS3]:
    """A finished caching job; every third of its requests failed."""
    import ray

    folder = tmp_path_factory.mktemp("on_s3")
    for index in range(VIDEOS):
        write_video(folder / "videos" / f"{index}.mp4", 47 + index)
    (folder / "videos" / "text.mkv").write_text("not a video")
    common = ["--recipe", "demo", "--data.source", "folder", "--vae.path", save_tiny_vae(folder / "vae")]
    common += ["--data.stride=3", "--cache.shard_clips", "4", "--cache.max_reject_fraction", "0.2"]
    with faulty_s3() as service:
        keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET}
        upload(service, folder / "videos", keys)
        service.plan = Plan(share=0.3, seed=5, kinds=QUICK)
        arguments = [*common, "--data.path", "s3://bucket/videos", "--run.storage", "s3://bucket/runs"]
        variables = {**keys, "AWS_ENDPOINT_URL": service.endpoint, "FRAMEBRIDGE_S3_TIMEOUT_S": "5"}
        done = subprocess.run(
            [sys.executable, "jobs/cache_latents.py", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                **variables,
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
                "PYTHONPATH": str(ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout
        met, service.plan = dict(service.plan.met), Plan()
        for name, value in variables.items():
            access.setenv(name, value)
        local = [*common, "--data.path", str(folder / "videos"), "--run.storage", str(folder / "runs")]
        yield OnS3(service, arguments, done.stdout, local, met)


QUICK = ("internal error", "slow down", "cut upload", "cut download", "lost answer")


def upload(service: FaultyS3, folder: Path, keys: dict[str, str]) -> None:
    client: Any = boto3.client(
        "s3",
        region_name="us-east-1",
        endpoint_url=service.direct,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket="bucket")
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"videos/{path.name}")


def test_nothing_is_lost_and_every_checksum_is_right(cached: OnS3) -> None:
    settings = load(cached.arguments)[0]
    cache = open_cache(settings.cache_path)
    assert sorted(row["video"] for row in cache.rows) == [f"{index}.mp4" for index in range(VIDEOS)]
    assert [row["reason"] for row in cache.rejected.to_pylist()] == ["unreadable"]
    for row in cache.rows:
        assert row["uri"] == f"s3://bucket/videos/{row['video']}"
        read_latent(cache.path, row)
    assert sum(cached.met.values()) >= 10 and len(cached.met) >= 3, f"the job met only {cached.met}"
    summary = build_cache(settings)
    assert (summary["planned"], summary["cached"], summary["rejected"]) == (VIDEOS + 1, VIDEOS, 1)
    assert summary["clips_this_run"] == 0, "a second run finds everything there"


def test_credentials_reach_the_workers_and_no_log(cached: OnS3) -> None:
    import ray

    assert "AWS_SECRET_ACCESS_KEY" not in ray.get(ray.remote(lambda: dict(os.environ)).remote())
    assert SECRET not in cached.output
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    shown = [str(path) for path in logs.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not shown and any(logs.iterdir())
    written = [entry.address for entry in entries("s3://bucket/runs", recursive=True)]
    assert written and not [address for address in written if SECRET.encode() in read_bytes(address)]


def test_a_line_of_a_workers_log_names_job_stage_and_clip(cached: OnS3) -> None:
    import ray

    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = "".join(path.read_text() for path in logs.glob("worker-*.err"))
    assert re.search(r"^\d\d:\d\d:\d\d job [0-9a-f]{8} decode: text.mkv, window 0: unreadable, ", lines, re.MULTILINE)


def test_the_same_cache_in_a_local_folder_holds_the_same_keys_and_checksums(cached: OnS3) -> None:
    there = open_cache(load(cached.arguments)[0].cache_path)
    settings = load(cached.local)[0]
    build_cache(settings)
    here = open_cache(settings.cache_path)
    assert [row["key"] for row in there.rows] == [row["key"] for row in here.rows]
    assert [row["checksum"] for row in there.rows] == [row["checksum"] for row in here.rows]
    assert there.spec == here.spec


def test_training_reads_the_same_batches_from_s3_under_faults(cached: OnS3) -> None:
    there = open_cache(load(cached.arguments)[0].cache_path)
    cached.service.plan = Plan(share=0.3, seed=6, kinds=QUICK)
    source = Source(there, there.select("train"), there.spec.classes, 0.0, seed=0)
    (batch,) = next(training_batches(source, size=4, micro=4, rank=0, workers=1, steps=range(1)))
    cached.service.plan = Plan()
    assert batch.latents.z0.shape == (4, 16, 4, 8, 8)
    here = open_cache(load(cached.local)[0].cache_path)
    source = Source(here, here.select("train"), here.spec.classes, 0.0, seed=0)
    (same,) = next(training_batches(source, size=4, micro=4, rank=0, workers=1, steps=range(1)))
    assert batch.latents.keys == same.latents.keys and torch.equal(batch.latents.z0, same.latents.z0)


def test_later_epochs_ask_nothing_of_s3(cached: OnS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for all workers of the node; a damaged local copy is read from S3 again."""
    monkeypatch.setattr("pipeline.data.load.reader.IN_MEMORY", 0)
    settings = load([*cached.arguments, f"--cache.local_path={tmp_path}"])[0]
    there = open_cache(settings.cache_path)
    clips = len(there.select("train"))

    def epoch(start: int) -> list[torch.Tensor]:
        kept = keep_locally(there, settings.cache, sharers=1)
        source = Source(there, there.select("train"), there.spec.classes, 0.0, seed=0, node_cache=kept)
        steps = training_batches(source, clips, clips, 0, 1, range(start, start + 1))
        return [micro_batches[0].latents.z0 for micro_batches in steps]

    cached.service.plan = Plan()
    first = epoch(0)
    assert sum(cached.service.plan.seen.values()) == clips
    cached.service.plan = Plan()
    assert torch.equal(epoch(0)[0], first[0]) and epoch(1)[0].shape == first[0].shape
    assert not cached.service.plan.seen
    damaged = next(path for path in tmp_path.rglob("*") if path.is_file())
    damaged.write_bytes(bytes(damaged.stat().st_size))
    assert torch.equal(epoch(0)[0], first[0])
    assert sum(cached.service.plan.seen.values()) == 1
