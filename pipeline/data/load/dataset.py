"""A split of a cache as a torch Dataset, for programs that bring their own training loop.

Training itself draws batches by step instead (batches.py), so that any number of workers sees the same clips.
"""

from typing import Any

import torch
from torch.utils.data import Dataset

from ..cache.manifest import Cache
from ..cache.shards import read_latent


class LatentDataset(Dataset[dict[str, Any]]):
    """The clips of one split, sorted by key.

    An item is a dict:
        key: the clip's name
        z0: (F, C, h, w) float32, the scaled mean of the posterior, or a new sample of it each time with `sample`
        image_latent: (C, h, w), the first frame of z0
        label: index of the class in cache.spec.classes; their number where the clip has none
        caption: "" where the clip has none
        stride: source frames from one frame of the clip to the next

    Samples come from PyTorch's global generator. Items raise CorruptShard where a shard is damaged.
    """

    def __init__(self, cache: Cache, split: str = "train", sample: bool = False) -> None:
        self.cache, self.rows, self.sample = cache, cache.select(split), sample
        classes = cache.spec.classes
        self._index = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        mean, logvar = torch.from_numpy(read_latent(self.cache.path, row)).float()
        z0 = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.sample else mean
        z0 = z0 * self.cache.spec.scaling_factor
        return {
            "key": row["key"],
            "z0": z0,
            "image_latent": z0[0],
            "label": self._index.get(row["label"], len(self._index)),
            "caption": row["caption"],
            "stride": row["stride"],
        }
