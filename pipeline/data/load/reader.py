"""CACHE -> CLIPS: read the latents, texts and prior outputs of a batch's clips."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...schema import TEST, TRAIN, ManifestRow
from ...storage.files import is_remote
from ..cache.manifest import Cache, read_null_text
from ..cache.shards import CorruptShard, read_latent, read_text
from .mix import Mix, cache_of, paths_of
from .node_cache import NodeCache

# A worker keeps its clips in memory up to so many bytes. Below, reading a file a sample would only cost system calls;
# above, the page cache of the machine does the keeping, and does it once for all workers.
IN_MEMORY = 2**30


READS = 8  # clips of a batch read at once from s3://, where a request takes a while whatever its size


Read = Callable[[ManifestRow], np.ndarray]


Clip = tuple[Tensor, Tensor, Tensor | None, str | None]  # what read_clip gives


Out = TypeVar("Out")


@dataclass(frozen=True)
class Source:
    """Where samples come from: the clips, and what turns one into tensors."""

    rows: Sequence[ManifestRow]
    shares: tuple[tuple[int, int], ...]  # of each cache in turn, (clips, draws an epoch)
    read: Read
    latent_shape: tuple[int, ...]  # F, C, h, w
    scaling_factor: float
    classes: list[str]  # of the model; a label that it does not know is its null class
    label_dropout: float
    seed: int
    read_prior: Read | None = None  # gives F_eta's cached output, (F, C, h, w)
    read_text: Read | None = None  # None: the model takes no text
    text_shape: tuple[int, ...] | None = None  # tokens, width
    null_text: np.ndarray | None = None  # (tokens, width); needed where text is dropped
    made: Sequence[Clip] | None = None  # the clips themselves, where they are not read but in memory
    at_once: int = 1  # clips of a batch that are read at the same time


def training_source(
    cache: Cache,
    classes: list[str],
    label_dropout: float,
    seed: int,
    read_prior: Read | None = None,
    node_cache: NodeCache | None = None,
) -> Source:
    """The cache's training clips, with F_eta's cached output where `read_prior` gives it; read through `kept`, if any."""
    rows = cache.select(TRAIN)
    return _source(cache, rows, classes, label_dropout, seed, read_prior, node_cache)


def validation_source(
    cache: Cache,
    classes: list[str],
    clips: int,
    seed: int,
    read_prior: Read | None = None,
    node_cache: NodeCache | None = None,
) -> Source:
    """At most `clips` held-out clips, spread evenly over the sorted keys; no label is dropped."""
    held_out = cache.select(TEST)
    count = min(clips, len(held_out))
    rows = [held_out[i * len(held_out) // count] for i in range(count)]
    return _source(cache, rows, classes, 0.0, seed, read_prior, node_cache)


def _source(
    cache: Cache,
    rows: Sequence[ManifestRow],
    classes: list[str],
    label_dropout: float,
    seed: int,
    read_prior: Read | None,
    node_cache: NodeCache | None,
) -> Source:
    return Source(
        rows,
        cache.shares if isinstance(cache, Mix) else ((len(rows), len(rows)),),
        reader(cache, rows, node_cache),
        tuple(cache.spec.latent_shape),
        cache.spec.scaling_factor,
        classes,
        label_dropout,
        seed,
        read_prior,
        at_once=READS if any(map(is_remote, paths_of(cache))) else 1,
    )


def with_text(source: Source, cache: Cache, node_cache: NodeCache | None = None) -> Source:
    """The same clips with the embeddings of their captions, for a model that takes text. Raises UserError."""
    if cache.spec.text_shape is None:
        raise UserError(f"{cache.path}: holds no text, which the model takes; set text.path and cache again")
    null_text = read_null_text(cache.path) if source.label_dropout else None
    read = functools.partial(text_of, cache, node_cache=node_cache)
    return replace(source, read_text=read, text_shape=tuple(cache.spec.text_shape), null_text=null_text)


def text_of(cache: Cache, row: ManifestRow, node_cache: NodeCache | None = None) -> np.ndarray:
    """float16 (tokens, width): the embedding of a clip's caption. Raises CorruptShard."""
    text = through(node_cache, read_text, cache_of(cache, row), row)
    if text is None:
        raise CorruptShard(f"clip {row['key']}: has no text in {cache_of(cache, row)}; cache again")
    return text


def reader(cache: Cache, rows: Sequence[ManifestRow], node_cache: NodeCache | None = None) -> Read:
    """What gives the posterior of a clip, (2, F, C, h, w) float16; held once read where all fit into memory."""

    def read(row: ManifestRow) -> np.ndarray:
        return through(node_cache, read_latent, cache_of(cache, row), row)

    if rows and len(rows) * rows[0].get("length", 0) > IN_MEMORY:  # all are of one length; planned clips have none
        return read
    held: dict[tuple[str, str], np.ndarray] = {}

    def read_once(row: ManifestRow) -> np.ndarray:
        place = cache_of(cache, row), row["key"]
        if place not in held:
            held[place] = read(row)
        return held[place]

    return read_once


def through(node_cache: NodeCache | None, read: Callable[..., Out], path: str, row: ManifestRow) -> Out:
    """`read` a clip of the cache at `path`, on this node's disk if it is there, and not damaged. Raises CorruptShard."""
    if node_cache is not None and is_remote(path):
        with contextlib.suppress(CorruptShard):
            return read(path, row, node_cache.read_range)
    return read(path, row)


def read_clips(source: Source, picks: Sequence[tuple[int, int]]) -> Iterator[tuple[ManifestRow, Clip]]:
    """The clips of a batch, as read_clip gives them."""
    rows = [source.rows[position] for position, _ in picks]
    if source.made is not None:
        return zip(rows, [source.made[position] for position, _ in picks], strict=True)
    if source.at_once == 1:
        return ((row, read_clip(source, row)) for row in rows)
    with ThreadPoolExecutor(source.at_once) as pool:
        return zip(rows, list(pool.map(functools.partial(read_clip, source), rows)), strict=True)


def read_clip(source: Source, row: ManifestRow) -> Clip:
    """Mean and log-variance of a clip's posterior, each (F, C, h, w) float32, and its text, if any; zeros and what is
    wrong where its bytes are not those that were written.
    """
    try:
        mean, logvar = torch.from_numpy(source.read(row)).float()
        text = None if source.read_text is None else torch.from_numpy(source.read_text(row)).float()
    except CorruptShard as error:
        mean, logvar = torch.zeros(source.latent_shape), torch.full(source.latent_shape, -30.0)
        text = None if source.text_shape is None else torch.zeros(source.text_shape)
        return mean, logvar, text, str(error)
    return mean, logvar, text, None
