"""SAMPLES -> METRICS: features of generated and true clips by Ray Data actors, kept on disk; distances and scores.

RUN/evaluate/features/NETWORK-HASH.npz   a network's arrays for a set of clips; HASH is of its weights and of the clips
RUN/evaluate/metrics.json                every number with its protocol, weights, counts and interval
"""

import hashlib
import io
import json
import logging
import math
import time
from typing import Any, NamedTuple

import numpy as np

from ..errors import JobFailed, UserError
from ..media import decode_mp4
from ..runtime.connect import start_ray
from ..runtime.placement import check_room
from ..runtime.pools import map_rows, stage_device
from ..runtime.progress import Progress
from ..settings import ActorResources, ClusterSettings, EvaluateSettings, Settings
from ..storage.files import exists, read_all, read_bytes, read_json, write_bytes, write_json
from .bootstrap import bootstrap
from .frechet import Divisor, feature_moments, frechet_distance
from .inception import inception_score
from .networks import load_network, network_hashes

log = logging.getLogger("evaluate")

Arrays = dict[str, np.ndarray]
LINE_EVERY_S = 10.0  # seconds between two lines
SAME = 0.02  # relative difference that is accepted from an earlier run's metric: other processors round otherwise


class Protocol(NamedTuple):
    """How a metric is made: the network's array, what becomes of it, and what makes numbers comparable.

    "features" give a Frechet distance, "probabilities" an inception score, other arrays a mean over clips.
    """

    name: str
    network: str
    array: str
    divisor: Divisor | None = None  # of a Frechet distance
    videos: int | None = None  # as published; a number over fewer is marked
    frames: int | None = None
    splits: int = 1  # of an inception score


PROTOCOLS = {
    "frechet_detector": Protocol("Frechet distance, the shipped detector's features", "detector", "features", "N"),
    "inception_detector": Protocol("inception score, the shipped detector's classes", "detector", "probabilities"),
    # Skorokhodov et al. 2022, whose statistics divide by N
    "fvd": Protocol("FVD, StyleGAN-V: 2,048 clips of 16 frames", "i3d", "features", "N", 2048, 16),
    "inception_c3d": Protocol(
        "inception score, StyleGAN-V: 2,048 clips of 16 frames in 10 parts", "c3d", "probabilities", None, 2048, 16, 10
    ),
    # Ge et al. 2024; their statistics divide by N too
    "cd_fvd": Protocol("CD-FVD: 2,048 clips of 16 frames", "videomae", "features", "N", 2048, 16),
    "clipsim": Protocol("CLIPSIM: mean cosine of frame and caption", "clip", "similarity"),
    "frame_consistency": Protocol(
        "frame consistency: mean cosine of CLIP's embeddings of neighbouring frames", "clip", "consistency"
    ),
    "motion_score": Protocol("motion score, CIL: mean length of RAFT's flow, pixels a frame", "raft", "motion"),
    "pic": Protocol("PIC, DynamiCrafter: 1 - DreamSim's distance to the first frame", "dreamsim", "conformity"),
}
VBENCH = (
    "is a package of its own that judges video files: `vbench evaluate --videos_path SAMPLES --mode custom_input "
    "--dimension NAME`"
)
NETWORKS = tuple(dict.fromkeys(protocol.network for protocol in PROTOCOLS.values()))


class Samples(NamedTuple):
    """A samples folder: its summary, and the records of its clips in order."""

    folder: str
    summary: dict[str, Any]
    records: list[dict[str, Any]]

    def with_true(self) -> np.ndarray:
        """Indices of the records with a true clip."""
        return np.array([i for i, record in enumerate(self.records) if record["true"]], dtype=int)


class FeatureBatches:
    """map_batches over actors: rows {"address", "caption"} of some clips in, a row of arrays for each clip out."""

    def __init__(self, network: str, evaluate: EvaluateSettings, resources: ActorResources) -> None:
        self._network = load_network(network, evaluate, stage_device(resources))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Decode the clips of a batch and run the network on them."""
        frames = np.stack([decode_mp4(content) for content in read_all(batch["address"].tolist())])
        found = self._network(frames, batch["caption"].tolist())
        return {"address": batch["address"], "frames": np.full(len(frames), frames.shape[1]), **found}


def read_samples(folder: str) -> Samples:
    """Read the records that jobs/sample.py left in `folder`. Raises UserError if there are none."""
    try:
        summary = read_json(f"{folder}/summary.json")
        records = [json.loads(content) for content in read_all([f"{folder}/{key}.json" for key in summary["items"]])]
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError) as error:
        raise UserError(f"{folder}: no samples there ({error}); run jobs/sample.py, or set evaluate.samples") from error
    return Samples(folder, summary, records)


def survey(evaluate: EvaluateSettings, run_folder: str) -> tuple[Samples, dict[str, str]]:
    """The samples to measure, and the SHA-256 of each given network's weights. Raises UserError."""
    return read_samples(evaluate.samples or f"{run_folder}/samples"), network_hashes(NETWORKS, evaluate)


def plan_evaluation(evaluate: EvaluateSettings, run_folder: str) -> str:
    """Describe what run_evaluation would do. Raises UserError."""
    samples, networks = survey(evaluate, run_folder)
    lines = [f"Plan: {len(samples.records)} clips of {samples.folder}, {len(samples.with_true())} with a true clip"]
    for name in NETWORKS:
        there = name in networks and exists(features_address(samples, name, networks[name], run_folder))
        state = "features are there" if there else "to run" if name in networks else f"evaluate.{name} is null: skipped"
        lines.append(f"  {name}: {state}")
    return "\n".join(lines)


def run_evaluation(settings: Settings) -> dict[str, Any]:
    """Extract missing features and compute the metrics. Returns the content of RUN/evaluate/metrics.json.

    Raises UserError, and JobFailed where a metric is not that of evaluate.expected.
    """
    started = time.monotonic()
    run, evaluate = settings.run, settings.evaluate
    samples, networks = survey(evaluate, run.folder)
    arrays = {
        name: features(samples, name, features_address(samples, name, sha256, run.folder), evaluate, settings.cluster)
        for name, sha256 in networks.items()
    }
    metrics, skipped = {}, {}
    for name, protocol in PROTOCOLS.items():
        network = protocol.network
        if network not in networks:
            skipped[name] = f"no weights: evaluate.{network} is null"
        elif protocol.divisor and len(samples.with_true()) < 2:
            skipped[name] = "fewer than two true clips: samples of images have none"
        elif len(samples.records) < 2:
            skipped[name] = "fewer than two clips"
        else:
            weights = {"path": getattr(evaluate, network), "sha256": networks[network]}
            found = measure(protocol, arrays[network], samples, evaluate.bootstrap, run.seed)
            metrics[name] = found | {"weights": weights}
    result = {
        "samples": samples.folder,
        "fingerprint": samples.summary["fingerprint"],
        "source": samples.summary["source"],
        "stride": samples_stride(samples, settings.cache_path),
        "seed": run.seed,
        "metrics": metrics,
        "skipped": skipped | {"vbench": VBENCH},
        "seconds": time.monotonic() - started,
    }
    write_json(f"{run.folder}/evaluate/metrics.json", result)
    if evaluate.expected is not None:
        check_expected(metrics, evaluate.expected)
    return result


def check_expected(metrics: dict[str, Any], address: str) -> None:
    """Raise JobFailed unless each metric of the earlier run at `address` is the same here.

    Raises UserError where there is no such run.
    """
    try:
        expected = read_json(address)["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"evaluate.expected = {address}: no metrics.json there ({error}); give one, or null") from error
    for name, before in expected.items():
        value = metrics[name]["value"] if name in metrics else math.nan
        if not math.isclose(value, before["value"], rel_tol=SAME):
            raise JobFailed(f"{name}: {value:.4f}, but {before['value']:.4f} in {address}: more than {SAME:.0%} apart")
    log.info("%d metrics are those of %s within %.0f %%", len(expected), address, 100 * SAME)


def samples_stride(samples: Samples, cache_path: str) -> Any:
    """Source frames from frame to frame: the cache's stride, or for images the one that the model was told."""
    if samples.summary["source"] == "images":
        return samples.summary["settings"]["stride"]
    address = f"{cache_path}/cache.json"
    return read_json(address)["settings"]["data.stride"] if exists(address) else None


def measure(protocol: Protocol, arrays: Arrays, samples: Samples, replicates: int, seed: int) -> dict[str, Any]:
    """Compute one metric of `arrays`, which hold a row for each generated clip and, behind them, for each true one."""
    count, divisor = len(samples.records), protocol.divisor
    generated, true = arrays[protocol.array][:count], arrays[protocol.array][count:]
    of_true: dict[str, float | None] = {}
    if divisor is not None:
        generated = generated[samples.with_true()]  # a draw takes both clips of an item
        count = len(generated)

        def statistic(index: np.ndarray) -> float:
            return frechet_distance(feature_moments(generated[index]), feature_moments(true[index]), divisor)

    elif protocol.array == "probabilities":
        of_true = {"of_true_clips": inception_score(true)[0] if len(true) > 1 else None}

        def statistic(index: np.ndarray) -> float:
            return inception_score(generated[index], min(protocol.splits, count))[0]

    else:
        of_true = {"of_true_clips": float(true.mean(dtype=np.float64)) if len(true) else None}

        def statistic(index: np.ndarray) -> float:
            return float(generated[index].mean(dtype=np.float64))

    frames = sorted({int(number) for number in arrays["frames"]})
    return {
        **bootstrap(statistic, count, replicates, seed),
        "protocol": protocol.name,
        "divisor": divisor,
        "frames": frames,
        "count": count,
        "protocol_videos": protocol.videos,
        "departs_from_protocol": departures(protocol, count, frames),
        **of_true,
    }


def departures(protocol: Protocol, count: int, frames: list[int]) -> list[str]:
    """Reasons why a number is not comparable with published ones."""
    found = []
    if protocol.videos is not None and count < protocol.videos:
        found.append(f"{count} clips, fewer than {protocol.videos}")
    if protocol.frames is not None and frames != [protocol.frames]:
        found.append(f"clips of {frames} frames, not {protocol.frames}")
    return found


def clip_rows(samples: Samples) -> list[dict[str, str]]:
    """Address and caption of every generated clip, in order, and then of every true one."""
    generated = [(record, "generated") for record in samples.records]
    true = [(record, "true") for record in samples.records if record["true"]]
    return [
        {"address": f"{samples.folder}/{one['key']}.{kind}.mp4", "caption": one["caption"] or one["label"]}
        for one, kind in generated + true
    ]


def features_address(samples: Samples, network: str, sha256: str, run_folder: str) -> str:
    """The file of a network's arrays: another one for other weights or other clips."""
    clips = [(record["key"], record["fingerprint"], record["true"]) for record in samples.records]
    digest = hashlib.blake2b(json.dumps([sha256, clips]).encode(), digest_size=12).hexdigest()
    return f"{run_folder}/evaluate/features/{network}-{digest}.npz"


def features(
    samples: Samples, network: str, address: str, evaluate: EvaluateSettings, cluster: ClusterSettings
) -> Arrays:
    """Read the arrays of `network` at `address`, or run it on the clips of `clip_rows` and keep them there."""
    if exists(address):
        log.info("%s: features are there: %s", network, address)
        with np.load(io.BytesIO(read_bytes(address)), allow_pickle=False) as stored:
            return dict(stored)
    load_network(network, evaluate)  # wrong weights are found here, in one line, not in an actor
    rows, stage = clip_rows(samples), cluster.sample
    start_ray(cluster)
    check_room("sample", stage, 1, "the actors that look at clips")
    progress, found = Progress(len(rows), "clips", LINE_EVERY_S), {}
    results = map_rows(FeatureBatches, rows, stage, evaluate.batch, network=network, evaluate=evaluate, resources=stage)
    for row in results.iter_rows():
        found[row.pop("address")] = row
        progress.add()
        if progress.due():
            log.info("%s: %s", network, progress.line())
    ordered = [found[row["address"]] for row in rows]
    arrays = {name: np.stack([row[name] for row in ordered]) for name in ordered[0]}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(address, buffer.getvalue())
    return arrays
