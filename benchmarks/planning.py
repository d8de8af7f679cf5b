"""Measure planning and resuming at the size of WebVid: a manifest of 2.5 million videos, 90 % of them cached.

    python benchmarks/planning.py                        # about two minutes, most of it making the fake cache
    python benchmarks/planning.py --videos 100000

Makes a Parquet manifest (URI, caption, size), and the manifest parts and rejected clips of a cache as
jobs/cache_latents.py leaves them, 512 clips a part. It makes no shards, since planning opens none. Then `resume` plans,
finds what is left, and counts the rest for the summary; `fresh` does so against an empty cache, where everything is
left. Each is a process of its own. Wall time, processor time (which other work on the machine does not stretch) and
peak memory (VmHWM; the process starts with Python and Arrow) go to benchmarks/results/planning.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from circumstances import circumstances

from pipeline.data.cache.progress import cache_progress, counts_of
from pipeline.data.plan.clips import plan_table
from pipeline.schema import MANIFEST_SCHEMA, PLAN_SCHEMA, REJECTED_SCHEMA
from pipeline.settings import ROOT, load

RESULT = Path(__file__).parent / "results" / "planning.json"
LIMITS = {"seconds": 90, "peak_gb": 2}  # of resume
CACHED, REJECTED = 0.9, 0.01
PART = 512
WORDS = ["a", "the", "of", "in", "and", "man", "woman", "dog", "sea", "city", "street", "slow", "motion", "aerial"]
WORDS += ["view", "close", "up", "sunset", "green", "background"]


def main() -> None:
    """Make the caches, measure both runs, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2_500_000)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.videos)
        runs = {name: child(f"{folder}/{name}") for name in ("resume", "fresh")}
    result = {
        **circumstances(),
        "disk": "local",
        "videos": arguments.videos,
        "runs": runs,
        "limits": LIMITS,
        "share_of_limits": {name: round(runs["resume"][name] / limit, 3) for name, limit in LIMITS.items()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def make(folder: Path, videos: int) -> None:
    """Write FOLDER/manifest.parquet, the cache FOLDER/resume and the empty cache FOLDER/fresh."""
    random = np.random.default_rng(0)
    ids = random.permutation(videos) + 1_000_000
    words = pa.array(WORDS)
    captions = [words.take(pa.array(random.integers(len(WORDS), size=videos))) for _ in range(14)]
    video = pc.binary_join_element_wise(
        pa.array(ids // 5000 * 50).cast(pa.string()),
        pc.binary_join_element_wise(pa.array(ids).cast("string"), ".mp4", ""),
        "/",
    )
    uri = pc.binary_join_element_wise("s3://bucket/webvid/videos", video, "/")
    size = pa.array(random.integers(10**5, 10**7, videos))
    table = pa.table({"uri": uri, "caption": pc.binary_join_element_wise(*captions, " "), "size": size})
    pq.write_table(table, folder / "manifest.parquet")
    for name in ("resume", "fresh"):
        (folder / name).mkdir()
    for kind in ("manifest", "rejects"):
        (folder / "resume" / kind).mkdir()
    plan = plan_table(settings(str(folder)).data).take(pa.array(random.permutation(videos)))
    made, rejected = int(CACHED * videos), int((CACHED + REJECTED) * videos)
    for start in range(0, made, PART):
        part = plan.slice(start, min(PART, made - start))
        pq.write_table(manifest_part(part, start), folder / f"resume/manifest/{start:024x}.parquet", compression="zstd")
    for start in range(made, rejected, PART):
        part = filled(
            plan.slice(start, min(PART, rejected - start)), REJECTED_SCHEMA, stage="decode", reason="too_short"
        )
        pq.write_table(part, folder / f"resume/rejects/r0001-{start:024x}.parquet", compression="zstd")


def manifest_part(part: pa.Table, start: int) -> pa.Table:
    """The manifest part of a committed shard."""
    keys = pa.array([f"{start + index:032x}"[::-1] for index in range(part.num_rows)])
    offsets = pa.array(np.arange(part.num_rows) * 2**18)
    return filled(
        part,
        MANIFEST_SCHEMA,
        key=keys,
        offset=offsets,
        length=2**18,
        shard=f"{start:024x}-000000000000.tar",
        decoder="decord",
    )


def filled(part: pa.Table, schema: pa.Schema, **values: Any) -> pa.Table:
    """Add the other columns of `schema` to `part`: the given `values`, constants or arrays, and nulls elsewhere."""
    arrays = []
    for field in schema:
        if field.name in part.column_names:
            arrays.append(part[field.name].cast(field.type))
        else:
            value = values.get(field.name)
            array = value if isinstance(value, pa.Array) else pa.array([value] * part.num_rows)
            arrays.append(array.cast(field.type))
    return pa.table(arrays, schema=schema)


def settings(folder: str) -> Any:
    """Settings of a job on the manifest in FOLDER."""
    line = ["--data.source", "manifest", "--data.path", f"{folder}/manifest.parquet", "--data.holdout_fraction", "0.01"]
    return load(line)[0]


def child(cache: str) -> dict[str, Any]:
    """Run `measure` on a cache in a process of its own."""
    line = [sys.executable, __file__, "--measure", cache]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def measure(cache: str) -> dict[str, Any]:
    """Plan and resume once, as the job does, in this process."""
    before = peak_gb()
    marks, processor = [time.monotonic()], time.process_time()
    plan = plan_table(settings(str(Path(cache).parent)).data)
    marks.append(time.monotonic())
    progress = cache_progress(plan, cache)
    marks.append(time.monotonic())
    counts = counts_of(cache, progress)
    marks.append(time.monotonic())
    assert plan.schema == PLAN_SCHEMA and counts["planned"] == plan.num_rows
    assert counts["cached"] + counts["rejected"] + progress.pending.num_rows == counts["planned"]
    names = ("plan_s", "standing_s", "counts_s")
    return {
        **{name: round(end - start, 2) for name, start, end in zip(names, marks, marks[1:], strict=False)},
        "seconds": round(marks[-1] - marks[0], 2),
        "cpu_seconds": round(time.process_time() - processor, 2),
        "load": round(os.getloadavg()[0], 1),
        "peak_gb": round(peak_gb(), 3),
        "peak_gb_at_start": round(before, 3),
        "pending": progress.pending.num_rows,
        "cached": counts["cached"],
        "rejected": counts["rejected"],
    }


def peak_gb() -> float:
    """The most resident memory that this process has ever had."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e9


if __name__ == "__main__":
    main()
