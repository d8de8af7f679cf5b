"""Measure the caching job as a whole: its rate relative to its slowest stage alone, the delay of commits, and memory.

    python benchmarks/cache_pipeline.py          # ten minutes on two idle cores

`efficiency`: the demo's clips (16 x 64 x 64, shipped VAE), one decode task and one VAE actor of one core each. The VAE
is the slowest stage, as it should be. The job takes turns with the VAE alone, which is a process of its own that calls
EncodeClips with the same clips from memory; figures are medians of the ratios of neighbouring turns. The job's rate is
taken between its first and its last commit. `wall` needs two idle cores. `cpu` counts processor time, which other
programs hardly change: the VAE alone, for a clip, divided by the larger of the actor and of everything else in the job
(decoding, commits, driver, Ray itself), each on one core. It does not count waiting.

`commit_lag` is the time from the encoding of a shard's last clip to its manifest part, to compare with the time that a
shard's clips take. `memory` is the peak RSS of the driver and of the largest worker of each kind, for 200 and for 2,000
tiny clips, without the pages of the object store, which Ray limits by itself and processes share. The result is
benchmarks/results/cache_pipeline.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from circumstances import circumstances

import pipeline.data.cache.encode
from pipeline.data.cache.run import build_cache
from pipeline.data.decode.stage import decode_clips
from pipeline.data.plan.clips import plan_table
from pipeline.settings import ROOT, Settings, load
from pipeline.shipped.synthetic import make_dataset

RESULT = Path(__file__).parent / "results" / "cache_pipeline.json"
STAGES = ["--cluster.decode.num_cpus=1", "--cluster.decode.max_tasks=1", "--cluster.encode.num_cpus=1"]
SHARD = 16
ALONE = "--alone"  # the stage alone, in a process of its own


def main() -> None:
    """Measure both parts, or one, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns of the job and of the stage alone")
    parser.add_argument("--clips", type=int, default=192, help="clips of a turn")
    parser.add_argument("--only", choices=["efficiency", "memory"], help="keep the other part of the result file")
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(RESULT.read_text()) if arguments.only and RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        videos = Path(folder) / "videos"
        make_dataset(str(videos), 32, seed=0, frames=120)
        if arguments.only != "memory":
            result["efficiency"] = circumstances() | efficiency(Path(folder), arguments.turns, arguments.clips)
        if arguments.only != "efficiency":
            result["memory"] = circumstances() | memory(Path(folder))
    text = json.dumps(result, indent=1)
    print(text)
    RESULT.write_text(text + "\n")


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Run a Ray cluster of two CPUs."""
    import ray

    variables = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def efficiency(folder: Path, turns: int, clips: int) -> dict[str, Any]:
    """Ratios of neighbouring turns, rates, and the lags of all commits."""
    rounds: list[dict[str, float]] = []
    lags: list[float] = []
    for turn in range(turns):
        arguments = [*STAGES, f"--data.clips_per_video={clips // 32}", f"--cache.shard_clips={SHARD}"]
        settings = job_settings(folder, f"turn{turn}", arguments)
        alone, alone_cpu = stage_alone(folder, arguments)
        times = folder / f"times{turn}"
        pipeline.data.cache.encode.EncodeClips = timed_encoder(times)  # type: ignore[misc, assignment]
        with cpu_samples() as samples:
            build_cache(settings)
        first, last, made, late = read_commits(settings, times)
        spent = {kind: cpu / made for kind, cpu in between(samples, first, last).items()}
        actor = spent.pop("VAE actor")
        # decoding runs ahead, most of it before the first commit
        decoding = [sample.get("decode child", 0.0) for _, sample in (samples[0], samples[-1])]
        spent["decode child"] = (decoding[1] - decoding[0]) / clips
        rate = made / (last - first)
        slowest = max(actor, sum(spent.values()))
        rounds.append({"wall": rate / alone, "cpu": alone_cpu / slowest, "alone": alone, "job": rate})
        rounds[-1] |= {"alone_ms": 1000 * alone_cpu, "actor_ms": 1000 * actor, "rest_ms": 1000 * sum(spent.values())}
        lags += late
        print({name: round(value, 3) for name, value in rounds[-1].items()}, spent, statistics.median(late), flush=True)
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {
        "clips_a_turn": clips,
        "turns": turns,
        "job_by_slowest_stage_median": {"cpu": medians["cpu"], "wall": medians["wall"]},
        "job_by_slowest_stage": {name: sorted(one[name] for one in rounds) for name in ("cpu", "wall")},
        "clips_per_second_median": {"job": medians["job"], "stage_alone": medians["alone"]},
        "cpu_ms_a_clip_median": {name: medians[f"{name}_ms"] for name in ("alone", "actor", "rest")},
        "commit_lag_s": {"median": statistics.median(lags), "most": max(lags), "a_shard_takes": SHARD / medians["job"]},
    }


@contextlib.contextmanager
def cpu_samples() -> Iterator[list[tuple[float, dict[str, float]]]]:
    """Sample (time, CPU seconds so far by kind of process) twice a second, for this process and all below it."""
    samples: list[tuple[float, dict[str, float]]] = []
    ended = threading.Event()

    def sample() -> None:
        known: dict[psutil.Process, tuple[str, float]] = {}
        while not ended.wait(0.5):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                    times = process.cpu_times()
                    known[process] = (kind_of(process, os.getpid()) or "Ray", times.user + times.system)
            spent: dict[str, float] = defaultdict(float)
            for kind, cpu in known.values():
                spent[kind] += cpu
            samples.append((time.time(), dict(spent)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield samples
    ended.set()
    thread.join()


def between(samples: list[tuple[float, dict[str, float]]], first: float, last: float) -> dict[str, float]:
    """CPU seconds by kind from about `first` to about `last`, scaled to that time."""
    (start, before), *_, (stop, after) = [sample for sample in samples if first <= sample[0] <= last]
    return {kind: (cpu - before.get(kind, 0.0)) * (last - first) / (stop - start) for kind, cpu in after.items()}


def job_settings(folder: Path, name: str, more: list[str]) -> Settings:
    """Settings of a caching job with storage FOLDER/NAME."""
    return load(["--recipe", "demo", f"--data.path={folder / 'videos'}", f"--run.storage={folder / name}", *more])[0]


def timed_encoder(times: Path) -> type:
    """EncodeClips that adds a line "KEY TIME" to the file `times` for every clip that it has encoded."""
    from pipeline.data.cache.encode import EncodeClips

    class EncodeClipsTimed(EncodeClips):
        def __call__(self, batch: pa.Table) -> pa.Table:
            encoded = super().__call__(batch)
            with open(times, "a") as stream:
                stream.writelines(f"{key} {time.time()}\n" for key in encoded["key"].to_pylist() if key)
            return encoded

    return EncodeClipsTimed


def read_commits(settings: Settings, times: Path) -> tuple[float, float, int, list[float]]:
    """(first commit, last commit, clips committed after the first, seconds from last encoding to commit by shard)."""
    encoded = {key: float(when) for key, when in (line.split() for line in times.read_text().splitlines())}
    commits, lags = [], []
    for part in Path(settings.cache_path, "manifest").glob("*.parquet"):
        keys = pq.read_table(part, columns=["key"])["key"].to_pylist()
        commits.append((part.stat().st_mtime, len(keys)))
        lags.append(part.stat().st_mtime - max(encoded[key] for key in keys))
    commits.sort()
    return commits[0][0], commits[-1][0], sum(clips for _, clips in commits[1:]), lags


def stage_alone(folder: Path, arguments: list[str]) -> tuple[float, float]:
    """Run encode_alone in a process of its own."""
    command = [sys.executable, __file__, ALONE, str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    rate, cpu = said.split()[-2:]
    return float(rate), float(cpu)


def encode_alone(folder: Path, arguments: list[str]) -> tuple[float, float]:
    """Measure (clips/s, CPU seconds a clip) of the VAE actor's class on batch after batch of decoded clips."""
    settings = job_settings(folder, "alone", arguments)
    decoded = pa.concat_tables(decode_clips(plan_table(settings.data).slice(0, 32), settings.data)).combine_chunks()
    encode = pipeline.data.cache.encode.EncodeClips(settings.vae, settings.data, num_cpus=1, num_gpus=0)
    batch = pipeline.data.cache.encode.clips_a_call(settings.vae, settings.data.frames, 0)
    encode(decoded.slice(0, batch))
    started, cpu, clips = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < 10:
        clips += encode(decoded.slice(clips % 32, batch)).num_rows
    return clips / (time.perf_counter() - started), (time.process_time() - cpu) / clips


def memory(folder: Path) -> dict[str, Any]:
    """Measure peak private MiB by kind of process for 200 and 2,000 clips, and the largest ratio of the two."""
    peaks = {}
    for clips in (200, 2000):
        arguments = ["--recipe", "demo", f"--data.path={folder / 'videos'}", f"--run.storage={folder / str(clips)}"]
        arguments += ["--data.source=folder", "--data.max_videos=20", f"--data.clips_per_video={clips // 20}"]
        arguments += ["--data.frames=4", "--data.stride=1", "--data.height=32", "--data.width=32"]
        arguments += ["--cache.shard_clips=50", "--cache.max_reject_fraction=1"]
        peaks[clips] = watch([sys.executable, "jobs/cache_latents.py", *arguments])
    return {
        "peak_mib": {
            str(clips): {kind: round(peak / 2**20, 1) for kind, peak in found.items()} for clips, found in peaks.items()
        },
        "by_kind": {kind: peaks[2000][kind] / peaks[200][kind] for kind in peaks[200]},
        "largest_ratio": max(peaks[2000][kind] / peaks[200][kind] for kind in peaks[200]),
    }


def watch(command: list[str]) -> dict[str, int]:
    """Run a job on this process's cluster; return the peak of private bytes of each kind of process."""
    import ray

    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)})
    peaks: dict[str, int] = {}
    while job.poll() is None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                kind = kind_of(process, job.pid)
                if kind:
                    memory = process.memory_info()
                    peaks[kind] = max(peaks.get(kind, 0), memory.rss - memory.shared)
        time.sleep(0.1)
    assert job.returncode == 0, job.returncode
    return peaks


def kind_of(process: psutil.Process, driver: int) -> str | None:
    """Name the part of the job that a process is; None for Ray itself."""
    command = process.cmdline()
    if process.pid == driver:
        return "driver"
    if "pipeline.data.decode.child" in command:
        return "decode child"
    name = command[0]
    known = {"EncodeClips": "VAE actor", "decode_clips": "decode worker", "commit_clips": "commit worker"}
    return next((kind for part, kind in known.items() if name.startswith("ray::") and part in name), None)


if __name__ == "__main__":
    if sys.argv[1:2] == [ALONE]:
        print(*encode_alone(Path(sys.argv[2]), sys.argv[3:]))
    else:
        main()
