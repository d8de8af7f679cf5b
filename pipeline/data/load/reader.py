"""CACHE -> CLIPS: the clips that a training draws from, and reading the latents, texts and prior outputs of a batch."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...schema import ManifestRow
from ...storage.files import is_remote
from ..cache.manifest import Cache, Rows, read_null_text
from ..cache.shards import CorruptShard, read_latent, read_text
from .mix import Mix, cache_of, paths_of
from .node_cache import NodeCache

# A worker keeps up to this many bytes of latents in memory, which saves a system call for each clip. More stays in the
# machine's page cache, once for all workers.
IN_MEMORY = 2**30
REMOTE_READS = 8  # clips of a batch read at once from s3://, where a request takes a while whatever its size

Read = Callable[[ManifestRow], np.ndarray]
Out = TypeVar("Out")


class Clip(NamedTuple):
    """The float32 tensors of one clip; latents that are damaged are zeros."""

    mean: Tensor  # (F, C, h, w), of the posterior, unscaled
    logvar: Tensor  # (F, C, h, w)
    text: Tensor | None = None  # (tokens, width)
    prior: Tensor | None = None  # (F, C, h, w), F_eta's cached output
    problem: str | None = None  # why its bytes are not those that were written


@dataclass(frozen=True)
class Source:
    """Some clips of a cache, and all that turns one into a training sample.

    Raises UserError where the model takes text and the cache has none.
    """

    cache: Cache
    rows: Rows
    classes: list[str]  # of the model; a label that it does not know is its null class
    label_dropout: float
    seed: int
    text: bool = False  # read the embeddings of captions too
    read_prior: Read | None = None  # gives F_eta's cached output, (F, C, h, w)
    node_cache: NodeCache | None = None
    made: Callable[[Sequence[int]], list[tuple[ManifestRow, Clip]]] | None = None  # stands in for `read` (online.py)

    def __post_init__(self) -> None:
        if self.text and self.cache.spec.text_shape is None:
            raise UserError(f"{self.cache.path}: holds no text, which the model takes; set text.path and cache again")
        if self.text and self.label_dropout:
            _ = self.null_text  # now, not in the middle of the first epoch

    @functools.cached_property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """(clips, draws an epoch) of each cache."""
        return self.cache.shares if isinstance(self.cache, Mix) else ((len(self.rows), len(self.rows)),)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """F, C, h, w."""
        return tuple(self.cache.spec.latent_shape)

    @functools.cached_property
    def null_text(self) -> Tensor:
        """(tokens, width) float32: the embedding of the empty caption. Raises UserError if the cache has none."""
        return torch.from_numpy(read_null_text(self.cache.path)).float()

    @functools.cached_property
    def posterior(self) -> Callable[[int], np.ndarray]:
        """A function that reads the posterior at a position, (2, F, C, h, w) float16, once if all fit into memory.

        It raises CorruptShard.
        """

        def read(position: int) -> np.ndarray:
            return self._on_this_node(read_latent, self.rows[position])

        fit = not self.rows or len(self.rows) * self.rows[0]["length"] <= IN_MEMORY  # all are of one length
        return functools.cache(read) if fit else read

    def read(self, positions: Sequence[int]) -> list[tuple[ManifestRow, Clip]]:
        """The clips at these positions of `rows`."""
        if self.made is not None:
            return self.made(positions)
        if not any(map(is_remote, paths_of(self.cache))):
            return list(map(self.read_clip, positions))
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            return list(pool.map(self.read_clip, positions))

    def read_clip(self, position: int) -> tuple[ManifestRow, Clip]:
        """One clip; a damaged one has a problem."""
        row, text = self.rows[position], None
        prior = None if self.read_prior is None else torch.from_numpy(self.read_prior(row).astype(np.float32))
        try:
            mean, logvar = torch.from_numpy(self.posterior(position)).float()
            if self.text:
                embedding = self._on_this_node(read_text, row)
                if embedding is None:
                    raise CorruptShard(f"clip {row['key']}: has no text in {cache_of(self.cache, row)}; cache again")
                text = torch.from_numpy(embedding).float()
        except CorruptShard as error:
            text = torch.zeros(self.cache.spec.text_shape or ()) if self.text else None
            return row, damaged_clip(self.latent_shape, str(error), text, prior)
        return row, Clip(mean, logvar, text, prior)

    def _on_this_node(self, read: Callable[..., Out], row: ManifestRow) -> Out:
        """Read from the node's disk if it holds undamaged bytes, else from the cache. Raises CorruptShard."""
        path = cache_of(self.cache, row)
        if self.node_cache is not None and is_remote(path):
            with contextlib.suppress(CorruptShard):
                return read(path, row, self.node_cache.read_range)
        return read(path, row)


def damaged_clip(shape: Sequence[int], problem: str, text: Tensor | None = None, prior: Tensor | None = None) -> Clip:
    """Stand in for a clip that could not be read or made: zeros of hardly any variance."""
    return Clip(torch.zeros(*shape), torch.full(tuple(shape), -30.0), text, prior, problem)
