"""A split of a cache is a torch Dataset of scaled latents."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_cache import tiny_settings

from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.shards import read_latent
from pipeline.data.load.dataset import LatentDataset


def test_items_are_scaled_means_of_the_split(storage: Path) -> None:
    cache = open_cache(tiny_settings(storage).cache_path)
    for split, clips in (("train", 10), ("test", 3)):
        found = LatentDataset(cache, split)
        rows = cache.select(split)
        assert len(found) == clips and [found[i]["key"] for i in range(clips)] == [row["key"] for row in rows]
        mean = torch.from_numpy(read_latent(cache.path, rows[0])[0]).float()
        assert torch.equal(found[0]["z0"], mean * cache.spec.scaling_factor)
        assert cache.spec.classes[found[0]["label"]] == rows[0]["label"]


def test_samples_are_new_draws_of_the_posterior(storage: Path) -> None:
    clips = LatentDataset(open_cache(tiny_settings(storage).cache_path), sample=True)
    torch.manual_seed(0)
    first, second = clips[0]["z0"], clips[0]["z0"]
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(clips[0]["z0"], first)


def test_loader_makes_batches_of_items(storage: Path) -> None:
    clips = LatentDataset(open_cache(tiny_settings(storage).cache_path))
    batch = next(iter(torch.utils.data.DataLoader(clips, batch_size=4)))
    assert batch["z0"].shape == (4, *clips.cache.spec.latent_shape) and len(batch["caption"]) == 4


def test_index_beyond_the_end_is_refused(storage: Path) -> None:
    with pytest.raises(IndexError):
        LatentDataset(open_cache(tiny_settings(storage).cache_path))[10]
