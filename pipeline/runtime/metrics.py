"""Give Prometheus a job's own metrics beside Ray's; cluster/grafana.json shows both.

Ray exports these on every node, at /metrics of a port that it writes into a file for Prometheus (cluster/README.md), as
ray_framebridge_NAME, a counter as ray_framebridge_NAME_total. The tag `run` is run.name.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

# name -> (class in ray.util.metrics, description, tags besides `run`)
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "cached_clips": ("Counter", "clips whose latents have been committed", ()),
    "rejected_clips": ("Counter", "clips that could not be cached", ("reason",)),
    "sampled_clips": ("Counter", "clips generated", ()),
    "train_loss": ("Gauge", "mean over the steps since the last row of history.csv", ("job",)),
    "train_clips_per_second": ("Gauge", "over all workers", ("job",)),
    "train_step_seconds": ("Gauge", "of an optimizer step", ("job",)),
    "train_share": ("Gauge", "of rank 0's time: data (waiting for a batch), forward, backward, ...", ("job", "part")),
}
PARTS = ("data", "forward", "backward", "optimizer", "checkpoint")  # of a training step's time; columns of history.csv


def count_cached(run: str, clips: int, reasons: Sequence[str]) -> None:
    """Count the clips of a commit, and its rejected clips by reason."""
    if clips:
        _metric("cached_clips").inc(clips, {"run": run})
    for reason, count in Counter(reasons).items():
        _metric("rejected_clips").inc(count, {"run": run, "reason": reason})


def count_sampled(run: str, clips: int) -> None:
    """Count generated clips."""
    if clips:
        _metric("sampled_clips").inc(clips, {"run": run})


def show_training(run: str, job: str, global_batch: int, row: Mapping[str, float | None]) -> None:
    """Set the gauges of training to a row of history.csv."""
    tags = {"run": run, "job": job}
    rate = row.get("samples_per_s")
    values = {"train_loss": row.get("loss"), "train_clips_per_second": rate}
    values["train_step_seconds"] = global_batch / rate if rate else None
    for name, value in values.items():
        if value is not None:
            _metric(name).set(value, tags)
    for part in PARTS:
        if (share := row.get(part)) is not None:
            _metric("train_share").set(share, tags | {"part": part})


@functools.cache
def _metric(name: str) -> Any:
    import ray.util.metrics

    kind, description, tags = METRICS[name]
    return getattr(ray.util.metrics, kind)(f"framebridge_{name}", description, ("run", *tags))
