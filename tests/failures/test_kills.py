"""Driver, decode workers and their children, VAE actors and a raylet are killed, 20 times in random order at random
moments, and a second job wants the same cache. However that goes: no clip is lost, none is made twice or wrong, nothing
half-written counts, nothing finished is made again.

KILL_SEED=N repeats a sequence of kills; the moments also depend on the machine.
"""

import contextlib
import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.caching_job import start_job
from helpers.tiny_vae import save_tiny_vae

from pipeline.data.cache.encode import EncodeClips
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.shards import read_latent
from pipeline.data.decode import stage
from pipeline.data.plan.clips import plan_table
from pipeline.settings import Settings, load
from pipeline.shipped.synthetic import CLASSES, random_scene, render, write_video
from pipeline.storage.files import read_json

KILLS = ["decode child"] * 7 + ["decode worker"] * 6 + ["VAE actor"] * 3 + ["raylet"] * 2 + ["driver"] * 2
CHEAP = ("decode child", "decode worker")
VIDEOS, CLIPS, SHARD = 10, 16, 8
LIMIT_S = 900.0  # a minute or two where nothing else runs

Tars = dict[str, int]  # committed tars and when they were written


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, of which the second can be lost."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    )
    started.add_node(num_cpus=1)
    yield started
    started.shutdown()


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_whatever_is_killed_every_clip_is_made_once_and_right(cluster: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(10_000))
    print(f"KILL_SEED={seed}")
    chance = random.Random(seed)
    made = add_videos(tmp_path / "videos", 0, VIDEOS)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    arguments = job_arguments(tmp_path)
    settings = load(arguments)[0]
    started = time.monotonic()
    deadline = started + LIMIT_S
    committed: Tars = {}

    job = start_job(arguments, cluster.address, tmp_path / "log")
    while not Path(settings.cache_path, "lock.json").exists():
        assert job.is_alive() and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    second = start_job(arguments, cluster.address, tmp_path / "second log")
    second.join(LIMIT_S)
    assert second.exitcode == 2 and f"process {job.pid} on" in (tmp_path / "second log").read_text()

    remaining, awaited = Counter(KILLS), 0
    while remaining.total():
        time.sleep(chance.uniform(0, 1))
        remember(committed, settings)
        assert time.monotonic() < deadline, f"left: {remaining}\n{(tmp_path / 'log').read_text()}"
        if not job.is_alive():
            assert job.exitcode == 0, (tmp_path / "log").read_text()
            made = add_videos(tmp_path / "videos", made, 2)
            job = start_job(arguments, cluster.address, tmp_path / "log")
        # no second of the kills that cost most before a shard was made after the first: on a busy machine, work
        # that is cut off faster than it starts would never end
        allowed = [
            kind for kind, left in sorted(remaining.items()) if left and (kind in CHEAP or len(committed) >= awaited)
        ]
        kind = chance.choice(allowed) if allowed else ""
        victims = find(kind)
        if not victims:
            continue
        print(f"{time.monotonic() - started:5.1f} s, {len(committed)} shards: {kind}", flush=True)
        remaining[kind] -= 1
        awaited = awaited if kind in CHEAP else len(committed) + 1
        if kind == "raylet":
            lose_node(cluster)
        elif kind == "driver":
            job.kill()
            job.join()
            job = start_job(arguments, cluster.address, tmp_path / "log")
        else:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself
                chance.choice(victims).send_signal(signal.SIGKILL)
    while job.is_alive():
        assert time.monotonic() < deadline, f"the job does not end\n{(tmp_path / 'log').read_text()}"
        remember(committed, settings)
        time.sleep(0.2)
    assert job.exitcode == 0, (tmp_path / "log").read_text()

    check_exactly_once(settings, committed, made)
    _, alive = psutil.wait_procs(find("decode child"), timeout=60)
    assert not alive, f"children outlive their work: {[(child, child.parent()) for child in alive]}"


def job_arguments(folder: Path) -> list[str]:
    given = {"data.source": "folder", "data.path": folder / "videos", "data.clips_per_video": CLIPS, "data.frames": 4}
    given |= {"data.height": 32, "data.width": 32, "data.stride": 2, "vae.path": save_tiny_vae(folder / "vae")}
    given |= {"run.storage": folder / "storage", "cache.shard_clips": SHARD, "cache.max_reject_fraction": 0.2}
    return ["--recipe", "demo", *(f"--{name}={value}" for name, value in given.items())]


def add_videos(folder: Path, first: int, count: int) -> int:
    """Write so many more videos, no two alike; returns how many there are then."""
    for number in range(first, first + count):
        scene = random_scene(CLASSES[number % len(CLASSES)], np.random.default_rng(number))
        write_video(folder / f"{number:03d}.mp4", (render(scene, index / 25, 48, 64) for index in range(40)))
    return first + count


def find(kind: str) -> list[psutil.Process]:
    """The processes of that kind below this one, which started the cluster; for a driver or raylet those that show
    that there is work to disturb."""
    decoders: list[psutil.Process] = []
    actors: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "pipeline.data.decode.child" in command:
                decoders.append(process)
            elif command and command[0].startswith("ray::") and "EncodeClips" in command[0]:
                actors.append(process)
    if kind == "decode worker":
        parents = [decoder.parent() for decoder in decoders]
        return [parent for parent in parents if parent is not None]
    return {"decode child": decoders, "": []}.get(kind, actors)


def lose_node(cluster: Any) -> None:
    """Kill the second node's raylet, and bring up another node."""
    (node,) = cluster.worker_nodes
    node.all_processes["raylet"][0].process.kill()
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)


def remember(committed: Tars, settings: Settings) -> None:
    """Add the tars that are committed now to `committed`."""
    cache = Path(settings.cache_path)
    for part in (cache / "manifest").glob("[!.]*.parquet"):
        for tar in pq.read_table(part, columns=["shard"])["shard"].unique().to_pylist():
            committed.setdefault(tar, (cache / "shards" / tar).stat().st_mtime_ns)


def check_exactly_once(settings: Settings, committed: Tars, videos: int) -> None:
    cache = open_cache(settings.cache_path)
    summary = read_json(f"{cache.path}/summary.json")
    clips = videos * CLIPS
    assert (summary["planned"], summary["cached"], summary["rejected"]) == (clips + CLIPS, clips, CLIPS)
    assert len({(row["video"], row["ordinal"]) for row in cache.rows}) == len(cache.rows) == clips
    parts = [pq.read_table(part) for part in (Path(cache.path) / "manifest").glob("*.parquet")]
    assert sum(part.num_rows for part in parts) == clips, "a clip was committed twice"
    assert sorted(cache.rejected["ordinal"].to_pylist()) == list(range(CLIPS))
    now = {path.name: path.stat().st_mtime_ns for path in (Path(cache.path) / "shards").glob("*.tar")}
    assert len(committed) > 2 and committed.items() <= now.items(), "a finished shard was written again"
    undisturbed = checksums(settings)
    assert {row["key"]: row["checksum"] for row in cache.rows} == undisturbed
    for row in cache.rows:
        read_latent(cache.path, row)  # the bytes are those of the checksum


def checksums(settings: Settings) -> dict[str, str]:
    """What every clip's latent has to be: key and checksum, from the stages' functions without Ray."""
    decoded = pa.concat_tables(stage.decode_clips(plan_table(settings.data), settings.data))
    stage.isolated_decoder.close()
    encode = EncodeClips(settings.vae, settings.data, num_cpus=1, num_gpus=0)
    rows = encode(decoded.filter(decoded["reason"].is_null())).to_pylist()
    return {row["key"]: f"{zlib.crc32(row['latent']):08x}" for row in rows}
