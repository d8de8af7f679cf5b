"""The order depends on seed, epoch and cache, and not on the number of workers or the step that a run starts at."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_cache import CLASSES, tiny_settings, write_cache

from pipeline.data.cache.manifest import Cache
from pipeline.data.cache.shards import CorruptShard, read_latent
from pipeline.data.load import reader
from pipeline.data.load.batches import TrainingBatch, make_batch, training_batches, validation_batches
from pipeline.data.load.order import global_batch, micro_batching, rank_slice
from pipeline.data.load.reader import Source

SIZE, STEPS = 4, 7  # of 10 clips: the stream passes the ends of two epochs


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tiny_settings(tmp_path_factory.mktemp("storage")), clips=10, held_out=3)


def whole(micro_batches: list[TrainingBatch]) -> dict[str, object]:
    counts = torch.cat([micro_batch.weight for micro_batch in micro_batches]).bool()
    keys = [key for micro_batch in micro_batches for key in micro_batch.latents.keys]
    return {
        "keys": [key for key, counted in zip(keys, counts, strict=True) if counted],
        "z0": torch.cat([micro_batch.latents.z0 for micro_batch in micro_batches])[counts],
        "label": torch.cat([micro_batch.latents.label for micro_batch in micro_batches])[counts],
        "noise": torch.cat([micro_batch.noise for micro_batch in micro_batches])[counts],
        "index": torch.cat([micro_batch.index for micro_batch in micro_batches])[counts],
        "seeds": torch.cat([micro_batch.seeds for micro_batch in micro_batches])[counts],
    }


def stream(cache: Cache, workers: int, micro: int, start: int = 0, seed: int = 0) -> Iterator[dict[str, object]]:
    """The global batches, put together from the batches of each worker."""
    source = Source(cache, cache.select("train"), CLASSES, 0.3, seed)
    ranks = [training_batches(source, SIZE, micro, rank, workers, range(start, STEPS)) for rank in range(workers)]
    for parts in zip(*ranks, strict=True):
        yield whole([micro_batch for micro_batches in parts for micro_batch in micro_batches])


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    return one["keys"] == other["keys"] and all(
        torch.equal(one[name], other[name])  # type: ignore[arg-type]
        for name in ("z0", "label", "noise", "index")
    )


@pytest.mark.parametrize(("workers", "micro"), [(1, 1), (1, 2), (1, 3), (2, 2), (2, 1), (3, 1), (4, 1)])
def test_global_batches_do_not_depend_on_workers(cache: Cache, workers: int, micro: int) -> None:
    reference = list(stream(cache, 1, SIZE))
    assert len(reference) == STEPS
    found = list(stream(cache, workers, micro))
    assert all(same(one, other) for one, other in zip(found, reference, strict=True))


@pytest.mark.parametrize(
    ("size", "micro", "workers", "expected"),
    [(64, 8, 8, (8, 1)), (64, 3, 8, (3, 3)), (10, 4, 3, (4, 1)), (4, 8, 3, (2, 1))],
)
def test_micro_batches_are_alike_on_all_workers_and_hold_every_clip(
    size: int, micro: int, workers: int, expected: tuple[int, int]
) -> None:
    assert micro_batching(size, micro, workers) == expected
    shares = [rank_slice(size, rank, workers) for rank in range(workers)]
    assert [index for mine in shares for index in mine] == list(range(size))
    assert all(0 < len(mine) <= expected[0] * expected[1] for mine in shares)


def test_a_restart_goes_on_with_the_same_batches(cache: Cache) -> None:
    reference = list(stream(cache, 2, 1))[4:]
    assert all(same(one, other) for one, other in zip(stream(cache, 1, 2, start=4), reference, strict=True))


def test_another_seed_gives_another_order_and_other_noise(cache: Cache) -> None:
    one, other = next(stream(cache, 1, SIZE)), next(stream(cache, 1, SIZE, seed=1))
    assert not torch.equal(one["noise"], other["noise"])  # type: ignore[arg-type]
    assert [global_batch(0, s, SIZE, ((10, 10),)) for s in range(5)] != [
        global_batch(1, s, SIZE, ((10, 10),)) for s in range(5)
    ]


@pytest.mark.parametrize(("size", "clips"), [(4, 10), (16, 10), (5, 5), (3, 7)])
def test_every_clip_comes_once_an_epoch(size: int, clips: int) -> None:
    order = [row for step in range(clips * 2) for row in global_batch(3, step, size, ((clips, clips),))]
    for epoch in range(len(order) // clips):
        assert sorted(order[epoch * clips : (epoch + 1) * clips]) == list(range(clips))
    assert order[:clips] != order[clips : 2 * clips]


def test_posterior_noise_and_time_are_fresh_at_every_visit(cache: Cache) -> None:
    seen: dict[str, torch.Tensor] = {}
    for batch in stream(cache, 1, SIZE):
        for key, z0 in zip(batch["keys"], batch["z0"], strict=True):  # type: ignore[call-overload]
            assert key not in seen or not torch.equal(seen[key], z0)
            seen[key] = z0
    assert len(seen) == 10


def test_z0_is_the_scaled_posterior(cache: Cache) -> None:
    source = Source(cache, cache.select("train"), CLASSES, 0.0, 0)
    batch = make_batch(source, [(i, i) for i in range(10)], "train", 0)
    assert batch.latents.keys == [row["key"] for row in source.rows]
    for z0, row in zip(batch.latents.z0, source.rows, strict=True):
        mean, logvar = torch.from_numpy(read_latent(cache.path, row)).float()
        error = (z0 / cache.spec.scaling_factor - mean) / (0.5 * logvar).exp()
        assert abs(error.std() - 1) < 0.25 and abs(error.mean()) < 0.3


def test_labels_are_dropped_at_the_set_rate_and_unknown_ones_are_null(cache: Cache) -> None:
    picks = [(i % 10, i) for i in range(400)]
    for dropout, low, high in ((0.0, 0, 0), (0.3, 80, 160), (1.0, 400, 400)):
        source = Source(cache, cache.select("train"), CLASSES, dropout, 0)
        label = make_batch(source, picks, "train", 0).latents.label
        assert low <= int((label == len(CLASSES)).sum()) <= high
    source = Source(cache, cache.select("train"), ["bounce"], 0.0, 0)
    label = make_batch(source, picks, "train", 0).latents.label
    assert set(label.tolist()) == {0, 1} and int((label == 1).sum()) == 200  # "slide" is not known


@pytest.mark.parametrize(("workers", "micro"), [(1, 1), (2, 1), (2, 2), (4, 3)])
def test_validation_is_fixed_and_counts_every_clip_once(cache: Cache, workers: int, micro: int) -> None:
    source = Source(cache, cache.select("test"), CLASSES, 0.0, 0)
    micro_batches = [
        micro_batch for rank in range(workers) for micro_batch in validation_batches(source, micro, rank, workers)
    ]
    assert all(len(micro_batch.latents.keys) == micro for micro_batch in micro_batches)
    reference = validation_batches(source, 3, 0, 1)[0]
    counted = whole(micro_batches)
    weights = torch.cat([micro_batch.weight for micro_batch in micro_batches])
    assert weights.sum() == 3 and counted["keys"] == reference.latents.keys
    assert torch.equal(counted["noise"], reference.noise)  # type: ignore[arg-type]
    assert counted["index"].tolist() == [166, 500, 833]  # type: ignore[attr-defined]


def test_validation_without_held_out_clips_has_no_batches(tmp_path: Path) -> None:
    cache = write_cache(tiny_settings(tmp_path), clips=2, held_out=0)
    assert validation_batches(Source(cache, cache.select("test"), CLASSES, 0.0, 0), 1, 0, 2) == []


def test_only_small_caches_stay_in_memory(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Source(cache, cache.rows, CLASSES, 0.0, 0)
    assert small.posterior(0) is small.posterior(0)
    monkeypatch.setattr(reader, "IN_MEMORY", 100)
    large = Source(cache, cache.rows, CLASSES, 0.0, 0)
    assert large.posterior(0) is not large.posterior(0) and np.array_equal(large.posterior(0), large.posterior(0))


def test_a_damaged_clip_has_no_weight_and_says_why(tmp_path: Path) -> None:
    cache = write_cache(tiny_settings(tmp_path))
    row = cache.select("train")[0]
    shard = Path(cache.path, "shards", row["shard"])
    content = bytearray(shard.read_bytes())
    content[row["offset"] + 200] ^= 1
    shard.write_bytes(content)
    source = Source(cache, cache.select("train"), CLASSES, 0.0, 0)
    with pytest.raises(CorruptShard, match=row["key"]):
        source.posterior(0)
    batch = make_batch(source, [(i, i) for i in range(10)], "train", 0, counted=9)
    where = batch.latents.keys.index(row["key"])
    assert batch.weight.tolist() == [float(i not in (where, 9)) for i in range(10)]
    assert len(batch.damaged) == 1 and row["key"] in batch.damaged[0]
    assert batch.latents.z0[where].abs().max() < 1e-3
