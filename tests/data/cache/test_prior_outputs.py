"""Cached outputs of F_eta: those that the prior gives, and refused when they are of another cache or checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_cache import CLASSES, tiny_settings, write_cache
from helpers.tiny_networks import randomise

from pipeline.data.cache.manifest import Cache
from pipeline.data.cache.prior_outputs import (
    check_outputs,
    describe_prior,
    folder_of,
    missing_shards,
    outputs_of,
    prior_reader,
    rows_of_shard,
    save_outputs,
)
from pipeline.data.cache.shards import read_latent
from pipeline.data.load.batches import make_batch
from pipeline.data.load.reader import Source
from pipeline.errors import UserError
from pipeline.models.build import build_prior, class_indices
from pipeline.models.prior import NeuralPrior
from pipeline.storage.files import read_json, write_json

WEIGHTS = "0123456789abcdef"


@pytest.fixture
def cached(tmp_path: Path) -> tuple[Cache, NeuralPrior]:
    settings = tiny_settings(tmp_path)
    cache = write_cache(settings)
    prior = randomise(build_prior(settings.prior.model, cache.spec.latent_shape, len(CLASSES)).eval())
    describe_prior(cache, WEIGHTS, "prior/export")
    for shard in missing_shards(cache, WEIGHTS):
        rows = rows_of_shard(cache, shard)
        save_outputs(cache, WEIGHTS, shard, outputs_of(prior, CLASSES, cache, rows, "cpu"))
    return cache, prior


def test_batch_brings_the_output_of_each_clip(cached: tuple[Cache, NeuralPrior]) -> None:
    cache, prior = cached
    source = Source(cache, cache.select("train"), CLASSES, 0.0, 0, read_prior=prior_reader(cache, WEIGHTS))
    batch = make_batch(source, [(position, position) for position in range(len(source.rows))], "train", 0)
    assert batch.latents.prior is not None
    for row, found in zip(source.rows, batch.latents.prior, strict=True):
        image = torch.from_numpy(read_latent(cache.path, row)[0, 0].astype(np.float32)) * cache.spec.scaling_factor
        with torch.no_grad():
            expected = prior(image[None], class_indices([row["label"]], CLASSES))[0]
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # kept in half precision
    without = Source(cache, cache.select("train"), CLASSES, 0.0, 0)
    assert make_batch(without, [(0, 0)], "train", 0).latents.prior is None


def test_outputs_of_another_cache_or_prior_are_refused(cached: tuple[Cache, NeuralPrior]) -> None:
    cache, _ = cached
    check_outputs(cache, WEIGHTS)
    with pytest.raises(UserError, match=r"no outputs of this neural prior .*jobs/cache_prior.py"):
        check_outputs(cache, "another")
    description = f"{folder_of(cache.path, WEIGHTS)}/prior.json"
    write_json(description, read_json(description) | {"cache_fingerprint": "another"})
    with pytest.raises(UserError, match="on cache another"):
        prior_reader(cache, WEIGHTS)


def test_shard_without_outputs_is_refused(cached: tuple[Cache, NeuralPrior]) -> None:
    cache, _ = cached
    next(Path(folder_of(cache.path, WEIGHTS)).glob("*.npy")).unlink()
    assert len(missing_shards(cache, WEIGHTS)) == 1
    with pytest.raises(UserError, match="1 shards are without outputs"):
        check_outputs(cache, WEIGHTS)
