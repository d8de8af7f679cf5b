"""Measure how much of a device the cache's VAE actor uses: frames/s, share of the peak, busy share.

    python benchmarks/vae_encode.py                                     # the SD VAE at 256 x 256 on a GPU: two minutes
    python benchmarks/vae_encode.py --vae shipped:vae --size 64 --calls 20     # the shipped VAE on a CPU: half a minute
    python benchmarks/vae_encode.py ... --ray                           # and the same actor fed by Ray Data

Three rates of the same encoder in one run: `alone` encodes one full batch after the other, from memory; `actor` calls
EncodeClips with Arrow batches of clips, one call after the other; `ray` runs it in a Ray Data actor pool. An actor's
busy share is its rate divided by that of the encoder alone. Without a GPU, seconds are processor time, except in `ray`.
Without --vae the weights are random, in the SD VAE's shape. The result is benchmarks/results/vae_encode_{gpu,cpu}.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from circumstances import circumstances
from torch.utils.flop_counter import FlopCounterMode

from pipeline.data.cache.encode import EncodeClips, clips_a_call
from pipeline.models.vae import DTYPES, Vae
from pipeline.schema import DECODED_SCHEMA
from pipeline.settings import DataSettings, VaeSettings

RESULTS = Path(__file__).parent / "results"
# dense bf16 and fp16 FLOP/s, from NVIDIA's data sheets
DATA_SHEET = {"H200": 989e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12, "A100": 312e12, "L40S": 362e12}
REPEATS = 5


def main() -> None:
    """Measure the rates and write the result file."""
    arguments = parse()
    on_gpu = torch.cuda.is_available() and not arguments.cpu
    data = DataSettings.model_construct(frames=arguments.frames, height=arguments.size, width=arguments.size)
    with vae_path(arguments.vae) as path:
        dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
        vae = VaeSettings.model_validate(
            {"path": path, "dtype": dtype, "batch_frames": arguments.batch_frames, "compile": not arguments.no_compile}
        )
        started = time.monotonic()
        actor = EncodeClips(vae, data, num_cpus=1, num_gpus=float(on_gpu))
        start_s = time.monotonic() - started
        batch = clips(clips_a_call(vae, data.frames, float(on_gpu)), data)
        flops = flops_per_frame(actor.vae, arguments.size)
        peak = matmul_rate(DTYPES[dtype], "cuda" if on_gpu else "cpu")
        alone, in_actor = measure(actor, batch, data, arguments.calls)
        result: dict[str, Any] = {
            **circumstances(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "torch": torch.__version__,
            "encoder": arguments.vae or "random weights, Stable Diffusion's shape",
            "size": arguments.size,
            "dtype": dtype,
            "compiled": on_gpu and vae.compile,
            "batch_frames": actor.batch_frames,
            "gflop_per_frame": flops / 1e9,
            "start_seconds": start_s,
            "alone": rate(alone, flops, peak, on_gpu, dtype) | {"clips_per_second": alone / data.frames},
            "actor": rate(in_actor, flops, peak, on_gpu, dtype) | {"busy_share": in_actor / alone},
        }
        if not on_gpu:
            result["frames_per_second_by_frames_at_once"] = sweep(actor.vae, arguments.size)
        if arguments.ray:
            fed = ray_rate(vae, data, arguments.calls, float(on_gpu))
            result["ray"] = rate(fed, flops, peak, on_gpu, dtype) | {"busy_share": fed / alone}
    text = json.dumps(result, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"vae_encode_{'gpu' if on_gpu else 'cpu'}.json").write_text(text + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", help="as vae.path; otherwise random weights in the SD VAE's shape")
    parser.add_argument("--size", type=int, default=256, help="height and width of a frame")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip")
    parser.add_argument("--batch-frames", type=int, default=64, help="as vae.batch_frames")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--calls", type=int, default=20, help="calls of the actor")
    parser.add_argument("--no-compile", action="store_true", help="as vae.compile false")
    parser.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    parser.add_argument("--ray", action="store_true", help="also behind Ray Data, on a Ray of its own")
    return parser.parse_args()


@contextmanager
def vae_path(chosen: str | None) -> Iterator[str]:
    """`chosen`, or a temporary folder with random weights in the shape of Stable Diffusion's VAE."""
    if chosen:
        yield chosen
        return
    from diffusers import AutoencoderKL

    with tempfile.TemporaryDirectory() as folder:
        AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        ).save_pretrained(folder)
        yield folder


def clips(count: int, data: DataSettings) -> pa.Table:
    """`count` decoded clips of noise."""
    shape = (data.frames, data.height, data.width, 3)
    random = np.random.default_rng(0)
    rows = [{"key": str(index), "frames": random.integers(0, 256, shape, np.uint8).tobytes()} for index in range(count)]
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def flops_per_frame(vae: Vae, size: int) -> float:
    """Floating-point operations of the encoder, counted on the meta device."""
    from diffusers import AutoencoderKL

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        AutoencoderKL.from_config(vae.module.config).encode(torch.empty(1, 3, size, size))
    return float(counter.get_total_flops())


def clock() -> float:
    """Wall time in seconds where a GPU works, else processor time, which other programs do not lengthen."""
    return time.perf_counter() if torch.cuda.is_initialized() else time.process_time()


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product of random numbers: the peak that a program reaches on this device."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b)


def best_seconds(work: Callable[[], object]) -> float:
    """Seconds of the fastest of REPEATS repetitions, after one to warm up."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = clock()
        work()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return min(seconds[1:])


def measure(actor: EncodeClips, batch: pa.Table, data: DataSettings, calls: int) -> tuple[float, float]:
    """Frames/s of the encoder alone and of the actor: medians of repetitions that take turns."""
    frames = batch.num_rows * data.frames
    host = torch.from_numpy(np.frombuffer(batch["frames"][0].as_buffer(), np.uint8).copy())
    one = host.reshape(-1, data.height, data.width, 3).repeat(-(-actor.batch_frames // data.frames), 1, 1, 1)[
        : actor.batch_frames
    ]
    resident = one.to(actor.vae.device)
    batches = -(-frames // actor.batch_frames)
    alone, in_actor = [], []
    actor(batch)  # compiles, chooses algorithms, allocates
    each = max(1, calls // REPEATS)
    for _ in range(REPEATS):
        started = clock()
        for _ in range(each * batches):
            actor.vae.encode(resident)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        alone.append(each * batches * actor.batch_frames / (clock() - started))
        started = clock()
        for _ in range(each):
            actor(batch)
        in_actor.append(each * frames / (clock() - started))
    return statistics.median(alone), statistics.median(in_actor)


def sweep(vae: Vae, size: int) -> dict[int, float]:
    """Frames/s of the encoder alone by batch size: medians of repetitions that take turns."""
    frames = torch.randint(0, 256, (64, size, size, 3), dtype=torch.uint8)
    rates: dict[int, list[float]] = {1: [], 2: [], 4: [], 8: [], 16: [], 32: [], 64: []}
    for _ in range(3 * REPEATS):
        for batch, found in rates.items():
            started = clock()
            for part in frames.split(batch):
                vae.encode(part)
            found.append(len(frames) / (clock() - started))
    return {batch: statistics.median(found) for batch, found in rates.items()}


def rate(frames_per_second: float, flops: float, peak: float, on_gpu: bool, dtype: str) -> dict[str, float]:
    """A rate, with its shares of the peaks."""
    shares = {"frames_per_second": frames_per_second, "share_of_matmul_rate": frames_per_second * flops / peak}
    if on_gpu and dtype != "float32":
        name = torch.cuda.get_device_name()
        for known, dense in DATA_SHEET.items():
            if known in name:
                shares["share_of_data_sheet_peak"] = frames_per_second * flops / dense
    return shares


def ray_rate(vae: VaeSettings, data: DataSettings, calls: int, num_gpus: float) -> float:
    """Frames/s of one actor in a Ray Data pool like the cache's, from its first answer to its last."""
    import ray.data
    from ray.data import ActorPoolStrategy

    ray.init(address="local", include_dashboard=False)
    block = clips(8, data)  # the output of one decode task
    size = clips_a_call(vae, data.frames, num_gpus)
    encoded = (
        ray.data.range(calls * size, override_num_blocks=max(1, calls * size // 8))
        .map_batches(lambda _: block, batch_size=8, num_cpus=0.5)
        .map_batches(
            EncodeClips,
            batch_size=size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=1, max_concurrent_calls_per_actor=2 if num_gpus else 1),
            fn_constructor_kwargs={"vae": vae, "data": data, "num_cpus": 1, "num_gpus": num_gpus},
            num_cpus=1,
            num_gpus=num_gpus,
        )
    )
    times = [
        (time.monotonic(), table.num_rows) for table in encoded.iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    ray.shutdown()
    return sum(rows for _, rows in times[1:]) * data.frames / (times[-1][0] - times[0][0])


if __name__ == "__main__":
    main()
