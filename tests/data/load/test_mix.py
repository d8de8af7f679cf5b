"""Several caches as one: shares by weight, an order of (seed, epoch, caches) alone, and only caches that fit."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.info import resolve_spec
from pipeline.data.cache.manifest import Cache
from pipeline.data.load.batches import training_batches
from pipeline.data.load.mix import Mix, open_training_cache
from pipeline.data.load.order import global_batch, mix_counts, mixed_order
from pipeline.data.load.reader import Source
from pipeline.errors import UserError
from pipeline.settings import Settings
from pipeline.train.plan import plan_training, prepare, run_fingerprint
from pipeline.train.spec import train_spec

SHARES = ((10, 12), (6, 4))  # clips and draws of 10 : 6 clips at weights 3 : 1


def open_wanted(settings: Settings) -> Cache:
    return open_training_cache(
        settings.cache_path, settings.cache.mix, resolve_spec(settings.data, settings.vae, settings.text)
    )


def mixed(folder: Path, *more: str) -> Settings:
    mix = f"[{{path: {folder}/one, weight: 3}}, {{path: {folder}/two, weight: 1}}]"
    return tiny_settings(folder, f"--cache.mix={mix}", *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches: 10 clips, and 6 others of another stride; some have the same name."""
    folder = tmp_path_factory.mktemp("mix")
    write_cache(tiny_settings(folder, f"--cache.path={folder}/one"), clips=10)
    write_cache(tiny_settings(folder, f"--cache.path={folder}/two", "--data.stride=2"), clips=6, held_out=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def mix(folder: Path) -> Mix:
    cache = open_wanted(mixed(folder))
    assert isinstance(cache, Mix) and cache.shares == SHARES
    return cache


def test_weights_divide_the_draws_of_an_epoch() -> None:
    assert mix_counts([10, 6], [3, 1]) == [12, 4]
    assert mix_counts([10, 6], [10, 6]) == [10, 6]
    assert mix_counts([1, 1, 1], [1, 1, 1]) == [1, 1, 1]
    assert sum(mix_counts([7, 11, 13], [0.2, 0.3, 0.1])) == 31


@pytest.mark.parametrize("shares", [SHARES, ((3, 7), (20, 16)), ((4, 4), (5, 5), (2, 2))])
def test_a_clip_comes_again_only_after_all_others_of_its_cache(shares: tuple[tuple[int, int], ...]) -> None:
    order = np.concatenate([mixed_order(5, epoch, shares) for epoch in range(12)])
    first = 0
    for clips, drawn in shares:
        own = order[(order >= first) & (order < first + clips)]
        assert len(own) == 12 * drawn
        for start in range(0, len(own) - clips + 1, clips):
            assert sorted(own[start : start + clips]) == list(range(first, first + clips))
        first += clips


def test_order_depends_on_seed_and_epoch_and_places_are_shuffled() -> None:
    orders = [mixed_order(seed, epoch, SHARES).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert mixed_order(0, 1, SHARES).tolist() == orders[1]
    owners = [row >= 10 for row in orders[0]]
    assert owners not in (sorted(owners), sorted(owners, reverse=True))


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_global_batches_do_not_depend_on_workers_or_restarts(mix: Mix, workers: int) -> None:
    source = Source(mix, mix.select("train"), mix.spec.classes, 0.3, 0)

    def clips(rank: int, of: int, start: int) -> list[list[tuple[str, float]]]:
        return [
            [
                (key, float(z0.sum()))
                for micro_batch in micro_batches
                for key, z0, weight in zip(
                    micro_batch.latents.keys, micro_batch.latents.z0, micro_batch.weight, strict=True
                )
                if weight
            ]
            for micro_batches in training_batches(source, 4, 2, rank, of, range(start, 9))
        ]

    whole = clips(0, 1, 0)
    parts = [clips(rank, workers, 3) for rank in range(workers)]
    assert [[clip for part in parts for clip in part[step]] for step in range(6)] == whole[3:]


def test_clips_are_read_from_their_own_cache_and_held_out_ones_come_from_all(mix: Mix) -> None:
    source = Source(mix, mix.select("train"), mix.spec.classes, 0.0, 0)
    strides = Counter(row["stride"] for row in (source.rows[i] for i in global_batch(0, 0, 16, source.shares)))
    assert sum(strides.values()) == 16 and len(source.rows) == 16
    assert all(source.posterior(position).shape == (2, 4, 4, 4, 4) for position in range(16))
    assert len(mix.select("test")) == 5


def test_a_mix_is_recorded_and_planned(folder: Path) -> None:
    run = prepare("finetune", mixed(folder))
    record = run_fingerprint(train_spec("finetune", run.settings, run.cache.spec), run.cache)
    assert [line.split(" ")[0] for line in record["cache.mix"]] == ["10", "6"]
    assert record["cache.mix"][0].endswith("weight 3") and record["cache.mix"][0] != record["cache.mix"][1]
    assert f"{folder}/one (75% of the draws), {folder}/two (25% of the draws)" in plan_training(run)
    heavier = mixed(folder, f"--cache.mix=[{{path: {folder}/one, weight: 2}}, {{path: {folder}/two, weight: 1}}]")
    assert (
        run_fingerprint(
            train_spec("finetune", heavier, prepare("finetune", heavier).cache.spec), prepare("finetune", heavier).cache
        )
        != record
    )


def test_caches_that_do_not_fit_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"two: cannot be mixed in \(latents: cache has .*take it out of cache.mix"):
        open_wanted(tiny_settings(folder, f"--cache.mix=[{{path: {folder}/two, weight: 1}}]", "--data.height=64"))
    with pytest.raises(UserError, match=r"vae.dtype: cache has float32, settings say float16"):
        open_wanted(mixed(folder, "--vae.dtype=float16"))
    with pytest.raises(UserError, match="without one clip an epoch"):
        open_wanted(
            tiny_settings(
                folder, f"--cache.mix=[{{path: {folder}/one, weight: 1000}}, {{path: {folder}/two, weight: 1}}]"
            )
        )
