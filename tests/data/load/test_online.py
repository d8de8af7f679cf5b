"""Training without a cache gets the cache's latents, in an order that depends on seed, epoch and plan alone."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.tiny_cache import MODEL, TRAIN
from helpers.tiny_vae import save_tiny_vae
from helpers.video_files import write_video

from pipeline.data.cache.encode import EncodeClips, npy_bytes
from pipeline.data.cache.info import CacheSpec, resolve_spec
from pipeline.data.cache.manifest import Cache
from pipeline.data.cache.pipeline import encoded
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.load.batches import TrainingBatch, training_batches
from pipeline.data.load.online import held_in_memory, made_while_training, planned_cache
from pipeline.data.load.order import global_batch
from pipeline.data.load.reader import Source
from pipeline.data.plan.clips import plan_clips
from pipeline.errors import UserError
from pipeline.schema import ENCODED_SCHEMA, PLAN_SCHEMA
from pipeline.settings import Settings, load
from pipeline.train.plan import plan_training, prepare
from pipeline.train.report.history import HISTORY
from pipeline.train.report.rows import read_history
from pipeline.train.run import run_training

SIZE, STEPS = 4, 4  # of 6 training clips: the stream passes the end of two epochs
SHAPE = (4, 4, 2, 2)  # F, C, h, w


def settings_of(folder: Path, *more: str) -> Settings:
    lines = {f"train.{key}": value for key, value in TRAIN.items()} | {f"model.{key}": v for key, v in MODEL.items()}
    lines |= {f"data.{key}": value for key, value in {"frames": 4, "height": 32, "width": 32, "stride": 2}.items()}
    lines |= {
        "run.storage": folder,
        "vae.path": folder / "vae",
        "data.path": folder / "videos",
        "data.source": "manifest",
    }
    lines |= {"data.annotations": folder / "videos.csv", "train.init": "null", "bridge.saf": "false"}
    lines |= {"bridge.prior": "replicated", "cluster.train.workers": 1, "data.online": "true", "train.steps": 3}
    return load(["--recipe", "demo", *(f"--{key}={value}" for key, value in lines.items()), *more])[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training videos and a held-out one."""
    folder = tmp_path_factory.mktemp("online")
    save_tiny_vae(folder / "vae")
    for index in range(7):
        write_video(folder / "videos" / f"{index}.mp4", 20 + index)
    rows = [f"{index}.mp4,{'test' if index == 6 else 'train'}" for index in range(7)]
    (folder / "videos.csv").write_text("\n".join(["uri,split", *rows]) + "\n")
    return folder


class Encoded:
    """A data set such as the stages make: a clip's latent holds the number of its video, and video 3 is unreadable."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))
        self.blocks = blocks

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        assert self.context.execution_options.preserve_order
        for block in self.blocks:
            rows = [{**row, **made(int(row["video"])), "attempts": 1} for row in block.to_pylist()]
            yield pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA)


def made(number: int) -> dict[str, object]:
    if number == 3:
        return {"stage": "decode", "reason": "unreadable", "detail": "not a video"}
    latent = np.stack([np.full(SHAPE, number), np.full(SHAPE, -30)]).astype(np.float16)
    return {"key": f"clip-{number}", "stride": 2, "latent": npy_bytes(latent)}


def planned(videos: int) -> Cache:
    rows = [
        {"uri": str(video), "video": str(video), "size": 1, "split": "train", "label": "", "caption": ""}
        | {"ordinal": 0, "clips": 1, "flip": False}
        for video in range(videos)
    ]
    return Cache("", CacheSpec("", {}, 1.0, list(SHAPE)), pa.Table.from_pylist(rows, PLAN_SCHEMA), pa.table({}))


def test_each_rank_gets_its_own_clips_in_the_order_of_a_cache() -> None:
    cache = planned(6)
    source = Source(cache, cache.rows, [], 0.0, 0)

    def clips(rank: int, workers: int, steps: range) -> list[list[tuple[str, float]]]:
        online = made_while_training(source, Encoded, SIZE, rank, workers, steps)
        found = []
        for (batch,) in training_batches(online, SIZE, SIZE, rank, workers, steps):
            assert batch.damaged == ("clip 3: unreadable (not a video)",) * batch.latents.keys.count("3")
            values = batch.latents.z0.mean((1, 2, 3, 4)).round().tolist()
            assert [float(weight) for weight in batch.weight] == [float(key != "3") for key in batch.latents.keys]
            found.append(list(zip(batch.latents.keys, values, strict=True)))
        return found

    whole = clips(0, 1, range(STEPS))
    expected = [[str(row) for row in global_batch(0, step, SIZE, ((6, 6),))] for step in range(STEPS)]
    assert [[key.removeprefix("clip-") for key, _ in batch] for batch in whole] == expected
    assert all(value == (0 if key == "3" else int(key[-1])) for batch in whole for key, value in batch)
    halves = [clips(rank, 2, range(1, STEPS)) for rank in (0, 1)]  # two workers that start after a step
    assert [one + other for one, other in zip(*halves, strict=True)] == whole[1:]


def test_held_out_clips_are_made_once() -> None:
    cache, calls = planned(3), []

    def stages(blocks: list[pa.Table]) -> Encoded:
        calls.append(sum(map(len, blocks)))
        return Encoded(blocks)

    source = held_in_memory(Source(cache, cache.rows, [], 0.0, 0), stages)
    first, again = ([row["key"] for row, _ in source.read([2, 0])] for _ in range(2))
    assert first == again == ["clip-2", "clip-0"] and calls == [3]


def stream(settings: Settings, rank: int, workers: int, start: int) -> Iterator[list[TrainingBatch]]:
    cache, steps = (
        planned_cache(settings.data, resolve_spec(settings.data, settings.vae, settings.text)),
        range(start, STEPS),
    )
    source = Source(cache, cache.select("train"), [], 0.0, 0)
    stages = partial(
        encoded, data=settings.data, vae=settings.vae, text=settings.text, cluster=settings.cluster, actors=1
    )
    source = made_while_training(source, stages, SIZE, rank, workers, steps)
    return training_batches(source, SIZE, SIZE, rank, workers, steps)


@pytest.mark.ray
@pytest.mark.long
def test_batches_hold_the_planned_clips_with_the_caches_latents(ray_cluster: None, folder: Path) -> None:
    settings = settings_of(folder)
    whole = [micro_batches[0] for micro_batches in stream(settings, 0, 1, 0)]
    encoder = EncodeClips(settings.vae, settings.data, num_cpus=1, num_gpus=0)
    spec = resolve_spec(settings.data, settings.vae, settings.text)
    cached = {}  # by hand, as the stages of the cache do it
    for planned in plan_clips(settings.data):
        frames, span = decode_clip(planned, settings.data)
        cached[span["key"]] = torch.from_numpy(encoder.encode([frames])[0].astype(np.float32))
    for batch in whole:
        for key, z0 in zip(batch.latents.keys, batch.latents.z0, strict=True):
            mean, logvar = cached[key]
            noise = (z0 / spec.scaling_factor - mean) / (0.5 * logvar).exp()
            assert 0.7 < noise.std() < 1.3 and noise.abs().max() < 6, "z0 is a sample of the cached posterior"
    keys = [key for batch in whole for key in batch.latents.keys]
    assert all(len(set(keys[start : start + 6])) == 6 for start in (0, 6)), "every clip once an epoch"
    halves = [list(stream(settings, rank, 2, 1)) for rank in (0, 1)]  # two workers that start again after a step
    for step in range(1, STEPS):
        parts = [half[step - 1][0] for half in halves]
        assert torch.equal(torch.cat([part.latents.z0[:2] for part in parts]), whole[step].latents.z0)
        assert torch.equal(torch.cat([part.noise[:2] for part in parts]), whole[step].noise)


@pytest.mark.ray
@pytest.mark.long
def test_a_run_trains_without_a_cache_and_leaves_out_an_unreadable_video(ray_cluster: None, folder: Path) -> None:
    (folder / "videos" / "text.mp4").write_text("not a video")
    (folder / "other.csv").write_text((folder / "videos.csv").read_text().replace("3.mp4", "text.mp4"))
    settings = settings_of(
        folder, f"--data.annotations={folder}/other.csv", "--run.name=other", "--train.damaged_clips=skip"
    )
    run = prepare("finetune", settings)
    assert "6 training and 1 held-out clips" in plan_training(run) and "made while training runs" in plan_training(run)
    summary = run_training(run)
    assert (summary["steps"], summary["clips"], summary["held_out"]) == (3, 6, 1)
    assert Path(run.spec.export).exists() and not Path(settings.cache_path).exists()
    assert read_history(f"{run.spec.folder}/{HISTORY}")[-1]["damaged"] in (1, 2, 3)


@pytest.mark.ray
def test_settings_that_need_a_cache_or_more_room_are_refused(ray_cluster: None, folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.online = true trains without a cache, which sample.while_training needs"
    ):
        settings_of(folder, "--sample.while_training=1")
    with pytest.raises(UserError, match=r"data.online = true: 2 workers, .* take 4 CPUs, and the cluster has 2; lower"):
        run_training(prepare("finetune", settings_of(folder, "--cluster.train.workers=2", "--run.name=two")))
