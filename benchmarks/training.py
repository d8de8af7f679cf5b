"""Measure what training costs besides its network's arithmetic, and what a latent cache saves.

    python benchmarks/training.py                    # all but `gpu`; a quarter of an hour on two idle cores
    python benchmarks/training.py --only authors     # one part; the others of the result file are kept
    python benchmarks/training.py --only gpu         # on a machine with GPUs

`overhead`: the demo's Latte, float32, batches of 8. One worker through Ray Train and DeepSpeed takes turns with a bare
PyTorch loop of the same model on the same batches, made beforehand, both with one thread. Rates are medians over rows
of 5 steps, without the first row. `workers` compares two workers of one thread with one worker of two threads, and
needs two idle cores.

`data_wait`: the share of a step that waits for data. Latte-S/2, 16 x 256 x 256, batches of one clip, from a local
cache, and from s3:// (moto on loopback) in the first epoch and after. No clip stays in memory, so every step reads.

`authors`: the same network and clip, float32, one thread. A step as in the authors' code decodes the video and encodes
its 16 frames each time, by the Stable Diffusion VAE's architecture with random weights; it is compared with a step from
the cache. Both have the step of `data_wait`.

`gpu`: Latte-XL/2, bfloat16, on all GPUs of this machine: TFLOP/s and MFU of a worker, and peak memory by ZeRO stage.

The result is benchmarks/results/training.json.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import torch
from circumstances import circumstances
from vae_encode import vae_path

from pipeline.data.cache.commit import commit
from pipeline.data.cache.encode import EncodeClips
from pipeline.data.cache.info import resolve_spec, write_spec
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.shards import npy_bytes
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.load import reader
from pipeline.data.load.batches import training_batches
from pipeline.data.load.node_cache import keep_locally
from pipeline.data.load.reader import Source
from pipeline.data.plan.clips import plan_clips
from pipeline.media import encode_mp4
from pipeline.models.build import build_image_to_video
from pipeline.models.image_to_video import ImageToVideo
from pipeline.schema import ENCODED_SCHEMA
from pipeline.settings import Settings, load
from pipeline.storage.files import write_bytes
from pipeline.train.initial import untrained
from pipeline.train.losses import finetune_loss
from pipeline.train.optimisation import make_optimizer
from pipeline.train.plan import prepare, training_flops
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import read_history
from pipeline.train.run import run_training
from pipeline.train.spec import train_spec

RESULT = Path(__file__).parent / "results" / "training.json"
ROW = 5  # steps
CLASSES = ["a", "b"]
PARTS = ("overhead", "workers", "data_wait", "authors", "gpu")


def main() -> None:
    """Measure the parts and write each into the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="steps of a turn")
    known = parser.parse_args()
    parts = [known.only] if known.only else [part for part in PARTS if part != "gpu"]
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for part in parts:
            begun = circumstances()
            if part in ("overhead", "workers"):
                found = turns(folder, part, known.turns, known.steps)
            else:
                found = {"data_wait": data_wait, "authors": authors, "gpu": gpu}[part](folder)
            result[part] = found | begun
            print(part, json.dumps(found), flush=True)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


# ---- the cost of Ray Train and DeepSpeed


def turns(folder: Path, part: str, count: int, steps: int) -> dict[str, Any]:
    """Train in two ways, `count` turns each; return the clips/s of each turn and the ratio of the medians."""
    settings = demo(folder)
    write_cache(settings, 32)
    rates: dict[str, list[float]] = {}
    for turn in range(count):
        if part == "overhead":
            ways = {"one_worker": (1, 1), "bare_loop": None}
        else:
            ways = {"two_workers": (2, 1), "one_worker_of_two_threads": (1, 2)}
        for name, place in ways.items():
            own = demo(folder, f"--run.name={part}-{name}-{turn}", f"--train.steps={steps}", *workers_of(place))
            rates.setdefault(name, []).append(bare_rate(own) if place is None else trained(own)["samples_per_s"])
    ours, other = rates
    ratio = statistics.median(rates[ours]) / statistics.median(rates[other])
    return {"model": "demo", "batch": 8, "clips_per_s": rates, "ratio": ratio, "ratio_is": f"{ours} / {other}"}


def demo(folder: Path, *more: str) -> Settings:
    """Settings of the demo's bridge from scratch, with batches of 8, without checkpoints and validation."""
    rare = 10**6
    lines = [f"--run.storage={folder}", f"--cache.path={folder}/cache-demo", "--train.init=null", "--bridge.saf=false"]
    lines += ["--bridge.prior=replicated", "--train.global_batch=8", f"--train.checkpoint_every={rare}"]
    lines += [
        f"--train.validate_every={rare}",
        f"--train.log_every={ROW}",
        "--train.warmup_steps=0",
        "--train.validate_clips=1",
    ]
    return load(["--recipe", "demo", *lines, *more])[0]


def workers_of(place: tuple[int, int] | None) -> list[str]:
    """Settings of (workers, threads of each)."""
    workers, threads = place or (1, 1)
    return [f"--cluster.train.workers={workers}", f"--cluster.train.num_cpus={threads}"]


def trained(settings: Settings) -> dict[str, Any]:
    """Train, and return the medians of the run's rows without the first."""
    run = prepare("finetune", settings)
    run_training(run)
    rows = [row for row in read_history(f"{run.spec.folder}/{HISTORY}") if row["samples_per_s"]][1:]
    names = ("samples_per_s", "tflops", "mfu", "memory_gb", "data")
    return {name: statistics.median(row[name] for row in rows) for name in names if rows[0].get(name) is not None}  # type: ignore[type-var]


def bare_rate(settings: Settings) -> float:
    """Clips/s of a plain PyTorch loop with the same model, loss, optimizer, clipping and number of steps."""
    cache, train = open_cache(settings.cache_path), settings.train
    source = Source(cache, cache.select("train"), cache.spec.classes, train.label_dropout, 0)
    made = [micro_batches[0] for micro_batches in training_batches(source, 8, 8, 0, 1, range(4))]
    model = untrained(train_spec("finetune", settings, cache.spec))
    assert isinstance(model, ImageToVideo)
    model.initialise(0)
    loss, optimizer = finetune_loss(model.conditions, settings.bridge), make_optimizer(model, train)
    rates = []
    for _ in range(train.steps // ROW):
        started = time.perf_counter()
        for batch in (made * 2)[:ROW]:
            loss(model, batch).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
        rates.append(8 * ROW / (time.perf_counter() - started))
    return statistics.median(rates[1:])


# ---- waiting for data


def data_wait(folder: Path) -> dict[str, Any]:
    """Measure the share of the steps' time that waits for a batch."""
    reader.IN_MEMORY = 0
    with vae_path(None) as vae:
        settings = real(folder, vae, f"--cache.path={folder}/cache-256", f"--cache.local_path={folder}/kept")
        write_cache(settings, 3)
        found: dict[str, Any] = {"local": waited(settings)}
        with s3_server() as bucket:
            there = real(folder, vae, f"--cache.path={bucket}/cache-256", f"--cache.local_path={folder}/kept")
            for path in sorted(Path(settings.cache_path).rglob("*")):
                if path.is_file():
                    write_bytes(f"{there.cache_path}/{path.relative_to(settings.cache_path)}", path.read_bytes())
            found["s3_first_epoch"] = waited(there)
            found["s3_after"] = waited(there)
    return {"model": "Latte-S/2 at 16 x 256 x 256", "batch": 1, "share_of_step": found}


def waited(settings: Settings, steps: int = 3) -> dict[str, float]:
    """Train `steps` steps after one that is not counted; return the share that waits for data, and seconds a step."""
    cache = open_cache(settings.cache_path)
    node_cache = keep_locally(cache, settings.cache, 1)
    source = Source(cache, cache.select("train"), cache.spec.classes, 0.1, 0, node_cache=node_cache)
    step_of = stepper(settings)
    # the first batch is waited for at the start of a run only, not at every step
    made = training_batches(source, 1, 1, 0, 1, range(steps + 1))
    next(made)
    waiting, working = 0.0, 0.0
    for _ in range(steps):
        started = time.perf_counter()
        (batch,) = next(made)
        waiting += time.perf_counter() - started
        started = time.perf_counter()
        step_of(batch)
        working += time.perf_counter() - started
    return {"data": waiting / (waiting + working), "step_s": working / steps}


def stepper(settings: Settings) -> Any:
    """Return step(batch): forward, backward and optimizer step of the settings' network."""
    spec = resolve_spec(settings.data, settings.vae, settings.text, CLASSES)
    model = build_image_to_video(settings.model, spec.latent_shape, len(CLASSES))
    model.initialise(0)
    loss, optimizer = finetune_loss(model.conditions, settings.bridge), make_optimizer(model, settings.train)

    def step(batch: Any) -> None:
        loss(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def real(folder: Path, vae: str, *more: str) -> Settings:
    """Settings of UCF-101's bridge, Latte-S/2 at 16 x 256 x 256, on one CPU in float32."""
    lines = [f"--run.storage={folder}", f"--vae.path={vae}", "--vae.dtype=float32", "--train.precision=float32"]
    lines += ["--data.source=folder", f"--data.path={folder}/videos"]
    lines += [f"--cluster.{stage}.num_gpus=0" for stage in ("encode", "train", "sample")]
    return load([*lines, *more])[0]


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server on loopback; yield the address of a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= variables | {"AWS_REGION": "us-east-1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
        yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()
        for name in variables:
            del os.environ[name]


def authors(folder: Path) -> dict[str, Any]:
    """Compare decoding and encoding at every step with reading the cache."""
    generator = np.random.default_rng(0)
    smooth = np.kron(generator.integers(0, 255, (60, 15, 20, 3), np.uint8), np.ones((1, 16, 16, 1), np.uint8))
    (folder / "videos").mkdir(exist_ok=True)
    (folder / "videos" / "clip.mp4").write_bytes(encode_mp4(smooth, 25))  # 320 x 240, as UCF-101's
    with vae_path(None) as vae:
        settings = real(folder, vae, f"--cache.path={folder}/cache-authors")
        write_cache(settings, 3)
        planned = next(iter(plan_clips(settings.data)))
        decode_clip(planned, settings.data)
        started = time.perf_counter()
        frames, _ = decode_clip(planned, settings.data)
        decode_s = time.perf_counter() - started
        encoder = EncodeClips(settings.vae, settings.data, 1, 0)
        started = time.perf_counter()
        encoder.encode([frames])
        encode_s = time.perf_counter() - started
        reader.IN_MEMORY = 0
        found = waited(settings)
        cache = open_cache(settings.cache_path)
        started = time.perf_counter()
        for row in cache.rows:
            reader.read_latent(cache.path, row)
        read_s = (time.perf_counter() - started) / len(cache.rows)
    step_s = found["step_s"]
    ours = step_s / (1 - found["data"])
    return {
        "model": "Latte-S/2 at 16 x 256 x 256, SD VAE's architecture",
        "seconds_a_clip": {"decode": decode_s, "encode": encode_s, "read_from_cache": read_s, "step": step_s},
        "ratio": (decode_s + encode_s + step_s) / ours,
        "ratio_is": "samples/s from the cache / samples/s of the authors' way",
    }


# ---- on GPUs


def gpu(folder: Path) -> dict[str, Any]:
    """Measure MFU and memory of Latte-XL/2; needs a GPU."""
    count = torch.cuda.device_count()
    if not count:
        sys.exit("training.py: --only gpu needs a GPU, and this machine has none")
    found: dict[str, Any] = {"gpus": f"{count} x {torch.cuda.get_device_name()}", "model": "Latte-XL/2"}
    with vae_path(None) as vae:
        for stage in range(4):
            lines = [f"--run.storage={folder}", f"--run.name=zero{stage}", f"--vae.path={vae}", "--model.size=XL"]
            lines += ["--data.source=folder", f"--data.path={folder}/videos", f"--cache.path={folder}/cache-gpu"]
            lines += [f"--train.zero_stage={stage}", f"--train.global_batch={8 * count}", "--train.steps=40"]
            lines += ["--train.warmup_steps=0", f"--train.log_every={ROW}", "--train.checkpoint_every=1000"]
            lines += [f"--cluster.train.workers={count}", "--train.validate_every=1000", "--train.validate_clips=1"]
            settings = load(lines)[0]
            if not stage:
                write_cache(settings, 64)
                run = prepare("finetune", settings)
                found["tflop_a_clip"] = training_flops(run.model, run.cache.spec) / 1e12
            found[f"zero_{stage}"] = trained(settings)
    return found


def write_cache(settings: Settings, clips: int) -> None:
    """Write a cache of `clips` random latents in the true format, and one held-out clip."""
    spec = resolve_spec(settings.data, settings.vae, settings.text, CLASSES)
    write_spec(settings.cache_path, spec)
    random = np.random.default_rng(0)
    rows = []
    for number in range(clips + 1):
        latent = npy_bytes(random.standard_normal((2, *spec.latent_shape)).astype(np.float16))
        words = {
            "uri": f"/{number}.mp4",
            "video": f"{number}.mp4",
            "label": CLASSES[number % 2],
            "caption": "",
            "decoder": "-",
        }
        words |= {
            "split": "test" if number == clips else "train",
            "key": f"{number:06d}",
            "source_hash": f"{number:032x}",
        }
        numbers = {name: 0 for name in ("ordinal", "start", "source_fps", "source_height", "source_width", "size")}
        numbers |= {"clips": 1, "stride": 3, "span": 46, "source_frames": 46, "attempts": 1}
        rows.append({**words, **numbers, "flip": False, "latent": latent, "text": None})
    commit(settings.cache_path, pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA))


if __name__ == "__main__":
    main()
