"""SAMPLES -> METRICS: features of the generated and the true clips by Ray Data actors, kept on disk; distances and scores.

RUN/evaluate/features/NETWORK-HASH.npz   what a network said of a set of clips; HASH is of its weights and of the clips
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
GENERATED, TRUE = "generated", "true"
PROGRESS_S = 10.0  # seconds between two lines
SAME = 0.02  # how near a metric must be to an earlier run's: other processors round otherwise


class Protocol(NamedTuple):
    """How a metric is made: the network, and what makes numbers comparable."""

    name: str
    network: str
    divisor: Divisor | None = None
    videos: int | None = None  # as published; with fewer, a number is marked
    frames: int | None = None
    needs_true: bool = False
    splits: int = 1  # of an inception score


PROTOCOLS = {
    "frechet_detector": Protocol("Frechet distance, the shipped detector's features", "detector", "N", needs_true=True),
    "inception_detector": Protocol("inception score, the shipped detector's classes", "detector"),
    # Skorokhodov et al. 2022, whose statistics divide by N
    "fvd": Protocol("FVD, StyleGAN-V: 2,048 clips of 16 frames", "i3d", "N", 2048, 16, needs_true=True),
    "inception_c3d": Protocol(
        "inception score, StyleGAN-V: 2,048 clips of 16 frames in 10 parts", "c3d", None, 2048, 16, splits=10
    ),
    # Ge et al. 2024; their statistics divide by N too
    "cd_fvd": Protocol("CD-FVD: 2,048 clips of 16 frames", "videomae", "N", 2048, 16, needs_true=True),
    "clipsim": Protocol("CLIPSIM: mean cosine of frame and caption", "clip"),
    "frame_consistency": Protocol("frame consistency: mean cosine of CLIP's embeddings of neighbouring frames", "clip"),
    "motion_score": Protocol("motion score, CIL: mean length of RAFT's flow, pixels a frame", "raft"),
    "pic": Protocol("PIC, DynamiCrafter: 1 - DreamSim's distance to the first frame", "dreamsim"),
}
MEANS = {
    "clipsim": "similarity",
    "frame_consistency": "consistency",
    "motion_score": "motion",
    "pic": "conformity",
}  # means over clips, of these arrays
VBENCH = "is a package of its own that judges video files: `vbench evaluate --videos_path SAMPLES --mode custom_input --dimension NAME`"
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
    """map_batches over actors: rows {"address", "caption"} of some clips in, one row of arrays a clip out."""

    def __init__(self, network: str, evaluate: EvaluateSettings, resources: ActorResources) -> None:
        self._network = load_network(network, evaluate, stage_device(resources))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
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


def samples_folder(settings: Settings) -> str:
    """The folder of the clips to measure: evaluate.samples, or the run's own."""
    return settings.evaluate.samples or f"{settings.run.folder}/samples"


def plan_evaluation(settings: Settings) -> str:
    """What run_evaluation would do, in words. Raises UserError."""
    samples, networks = read_samples(samples_folder(settings)), network_hashes(NETWORKS, settings.evaluate)
    lines = [f"Plan: {len(samples.records)} clips of {samples.folder}, {len(samples.with_true())} with a true clip"]
    for name in NETWORKS:
        there = name in networks and exists(features_address(samples, name, networks[name], settings.run.folder))
        state = "features are there" if there else "to run" if name in networks else f"evaluate.{name} is null: skipped"
        lines.append(f"  {name}: {state}")
    return "\n".join(lines)


def run_evaluation(settings: Settings) -> dict[str, Any]:
    """Extract what is missing, compute the metrics. Returns what it writes to RUN/evaluate/metrics.json. Raises UserError."""
    started = time.monotonic()
    samples, networks = read_samples(samples_folder(settings)), network_hashes(NETWORKS, settings.evaluate)
    arrays = {
        name: features(samples, name, sha256, settings.evaluate, settings.run.folder, settings.cluster)
        for name, sha256 in networks.items()
    }
    metrics, skipped = {}, {}
    for name, protocol in PROTOCOLS.items():
        if protocol.network not in networks:
            skipped[name] = f"no weights: evaluate.{protocol.network} is null"
        elif protocol.needs_true and len(samples.with_true()) < 2:
            skipped[name] = "fewer than two true clips: samples of images have none"
        elif len(samples.records) < 2:
            skipped[name] = "fewer than two clips"
        else:
            weights = {"path": getattr(settings.evaluate, protocol.network), "sha256": networks[protocol.network]}
            metrics[name] = measure(
                name, arrays[protocol.network], samples, settings.evaluate.bootstrap, settings.run.seed
            ) | {"weights": weights}
    result = {
        "samples": samples.folder,
        "fingerprint": samples.summary["fingerprint"],
        "source": samples.summary["source"],
        "stride": samples_stride(samples, settings.cache_path),
        "seed": settings.run.seed,
        "metrics": metrics,
        "skipped": skipped | {"vbench": VBENCH},
        "seconds": time.monotonic() - started,
    }
    write_json(f"{settings.run.folder}/evaluate/metrics.json", result)
    if settings.evaluate.expected is not None:
        check_expected(metrics, settings.evaluate.expected)
    return result


def check_expected(metrics: dict[str, Any], address: str) -> None:
    """Raise JobFailed unless every metric of an earlier run is there and as large, UserError where there is no such run."""
    try:
        expected = read_json(address)["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"evaluate.expected = {address}: no metrics.json there ({error}); give one, or null") from error
    for name, before in expected.items():
        value = metrics[name]["value"] if name in metrics else math.nan
        if not math.isclose(value, before["value"], rel_tol=SAME):
            raise JobFailed(
                f"{name}: {value:.4f}, but {before['value']:.4f} in {address}: not reproduced within {SAME:.0%}"
            )
    log.info("%d metrics are those of %s within %.0f %%", len(expected), address, 100 * SAME)


def samples_stride(samples: Samples, cache_path: str) -> Any:
    """Source frames from frame to frame: of held-out clips the cache's, of images what the model was told."""
    if samples.summary["source"] == "images":
        return samples.summary["settings"]["stride"]
    address = f"{cache_path}/cache.json"
    return read_json(address)["settings"]["data.stride"] if exists(address) else None


def measure(name: str, arrays: Arrays, samples: Samples, replicates: int, seed: int) -> dict[str, Any]:
    """One metric of the features of all generated clips and, behind them, of the true ones."""
    protocol = PROTOCOLS[name]
    count, pairs = len(samples.records), samples.with_true()
    if protocol.divisor is not None:
        divisor, generated, true = protocol.divisor, arrays["features"][pairs], arrays["features"][count:]
        count = len(pairs)  # an item is drawn with both of its clips

        def statistic(index: np.ndarray) -> float:
            return frechet_distance(feature_moments(generated[index]), feature_moments(true[index]), divisor)

    elif name.startswith("inception"):
        probabilities, splits = arrays["probabilities"][:count], min(protocol.splits, count)

        def statistic(index: np.ndarray) -> float:
            return inception_score(probabilities[index], splits)[0]

    else:
        values = arrays[MEANS[name]][:, 0].astype(np.float64)

        def statistic(index: np.ndarray) -> float:
            return float(values[index].mean())

    frames = sorted({int(number) for number in arrays["frames"]})
    result = {**bootstrap(statistic, count, replicates, seed), "protocol": protocol.name}
    result |= {"divisor": protocol.divisor, "frames": frames, "count": count, "protocol_videos": protocol.videos}
    result["departs_from_protocol"] = departures(protocol, count, frames)
    true_clips = slice(len(samples.records), None)
    if name.startswith("inception"):
        reference = arrays["probabilities"][true_clips]
        result["of_true_clips"] = inception_score(reference)[0] if len(reference) > 1 else None
    elif name in MEANS:
        result["of_true_clips"] = float(values[true_clips].mean()) if len(pairs) else None
    return result


def departures(protocol: Protocol, count: int, frames: list[int]) -> list[str]:
    """What keeps a number from being compared with published ones."""
    found = []
    if protocol.videos is not None and count < protocol.videos:
        found.append(f"{count} clips, fewer than {protocol.videos}")
    if protocol.frames is not None and frames != [protocol.frames]:
        found.append(f"clips of {frames} frames, not {protocol.frames}")
    return found


def clip_rows(samples: Samples) -> list[dict[str, str]]:
    """Address and caption of every generated clip, in order, and then of every true one."""
    rows = []
    for kind in (GENERATED, TRUE):
        for record in samples.records:
            if kind == GENERATED or record["true"]:
                caption = record["caption"] or record["label"]
                rows.append({"address": f"{samples.folder}/{record['key']}.{kind}.mp4", "caption": caption})
    return rows


def features_address(samples: Samples, network: str, sha256: str, run_folder: str) -> str:
    """Where the features are kept: another address for other weights or other clips."""
    clips = [(record["key"], record["fingerprint"], record["true"]) for record in samples.records]
    digest = hashlib.blake2b(json.dumps([sha256, clips]).encode(), digest_size=12).hexdigest()
    return f"{run_folder}/evaluate/features/{network}-{digest}.npz"


def features(
    samples: Samples, network: str, sha256: str, evaluate: EvaluateSettings, run_folder: str, cluster: ClusterSettings
) -> Arrays:
    """Run `network` on the clips of `clip_rows`, in that order, or read what it gave for them before."""
    address = features_address(samples, network, sha256, run_folder)
    if exists(address):
        log.info("%s: features are there: %s", network, address)
        with np.load(io.BytesIO(read_bytes(address)), allow_pickle=False) as stored:
            return dict(stored)
    load_network(network, evaluate)  # wrong weights are found here, in one line, not in an actor
    rows = clip_rows(samples)
    start_ray(cluster)
    check_room("sample", cluster.sample, 1, "the actors that look at clips")
    progress, found = Progress(len(rows), "clips", PROGRESS_S), {}
    looked_at = map_rows(
        FeatureBatches,
        rows,
        cluster.sample,
        evaluate.batch,
        network=network,
        evaluate=evaluate,
        resources=cluster.sample,
    )
    for row in looked_at.iter_rows():
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
