"""Measure the cost of decoding in a child process, relative to decoding the same clips in process.

    python benchmarks/isolation.py        # two minutes on an idle machine

Videos like UCF-101's (320 x 240, 60 frames) become clips of 16 x 256 x 256 frames: short, small videos into large
clips, so that decoding is cheap and the hand-over is large. The two ways take turns, and figures are medians of the
ratios of neighbouring turns, so that other work on the machine slows both alike. `cpu` counts the CPU time of worker
and child: the cost in throughput where every core decodes. `wall` is the time of one worker alone, whose child decodes
the next clip while the worker hands over the last; it means something on an idle machine only. Both ways decode with
the memory settings of the child. The result is benchmarks/results/isolation.json.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from circumstances import circumstances

from pipeline.data.decode import child, stage
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.plan.clips import plan_table
from pipeline.settings import DataSettings, load
from pipeline.shipped.synthetic import CLASSES, random_scene, render, write_video

RESULT = Path(__file__).parent / "results" / "isolation.json"
VIDEOS = 16


def main() -> None:
    """Measure both ways in turn and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="turns of each way")
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        for number in range(VIDEOS):
            scene = random_scene(CLASSES[number % len(CLASSES)], np.random.default_rng(number))
            write_video(Path(folder) / f"{number}.mp4", (render(scene, index / 25, 240, 320) for index in range(60)))
        data = load(["--data.source", "folder", "--data.path", folder])[0].data
        plan = plan_table(data)
        ways: list[Callable[[pa.Table, DataSettings], Iterator[pa.Table]]] = [in_process, stage.decode_clips]
        for way in ways:  # warm up: imports, the child, the videos in memory
            list(way(plan, data))
        measured = [[timed(way, plan, data) for way in ways] for _ in range(turns)]
        stage.isolated_decoder.close()
    result: dict[str, Any] = {**circumstances(), "clips_a_turn": VIDEOS, "turns": turns}
    for index, clock in enumerate(("cpu", "wall")):
        ratios = [isolated[index] / own[index] for own, isolated in measured]
        result[clock] = {
            "isolated_by_in_process_median": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4),
            "in_process_ms_a_clip_median": 1000 / VIDEOS * statistics.median(own[index] for own, _ in measured),
        }
    text = json.dumps(result, indent=1)
    print(text)
    RESULT.write_text(text + "\n")


def in_process(plan: pa.Table, data: DataSettings) -> Iterator[pa.Table]:
    """Decode like stage.decode_clips, without a child."""
    for row in plan.to_pylist():
        frames, span = decode_clip(row, data)
        yield stage.decoded_row({**row, **span, "attempts": 1}, frames)


def timed(
    way: Callable[[pa.Table, DataSettings], Iterator[pa.Table]], plan: pa.Table, data: DataSettings
) -> tuple[float, float]:
    """Decode the plan; return CPU seconds of this process and the child, and seconds."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    made = pa.concat_tables(way(plan, data))
    spent = cpu_seconds() - cpu, time.perf_counter() - wall
    assert made["frames"].null_count == 0, made["reason"]
    return spent


def cpu_seconds() -> float:
    """CPU seconds of this process and of the child so far."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    child = psutil.Process(stage.isolated_decoder.pid).cpu_times() if stage.isolated_decoder.pid else None
    return own.ru_utime + own.ru_stime + (child.user + child.system if child else 0.0)


if __name__ == "__main__":
    if not child.MALLOC.keys() <= os.environ.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **child.MALLOC})
    main()
