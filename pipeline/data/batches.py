"""LATENT CACHE -> TRAINING BATCHES, in an order that is a function of (seed, epoch, cache) alone.

The clips of every epoch, shuffled, follow one another in one long stream; global batch k is entries k*G to
(k+1)*G - 1 of it, so every clip comes once an epoch and nothing is dropped. A worker takes its contiguous share of a
batch. (Of several caches, mix.py says what an epoch is.) All that is random in a sample comes from a generator seeded by (seed, stream, step, index in the global batch).
Hence the k-th global batch is the same on any number of workers, and before and after a restart.
"""

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.kept import Kept
from pipeline.data.manifest import Cache, read_null_text
from pipeline.data.mix import Mix, cache_of, mixed_order, paths_of
from pipeline.data.prefetch import prefetch
from pipeline.data.shards import CorruptShard, read_latent, read_text
from pipeline.models.build import class_indices
from pipeline.models.conditioning import dropped
from pipeline.models.vae import sample_posterior
from pipeline.schema import TEST, TRAIN, LatentBatch, ManifestRow
from pipeline.settings import UserError
from pipeline.storage import is_remote

TIMESTEPS = 1000
# A worker keeps its clips in memory up to so many bytes. Below, reading a file a sample would only cost system calls;
# above, the page cache of the machine does the keeping, and does it once for all workers.
IN_MEMORY = 2**30
READS = 8  # clips of a batch read at once from s3://, where a request takes a while whatever its size

Read = Callable[[ManifestRow], np.ndarray]
Clip = tuple[Tensor, Tensor, Tensor | None, str | None]  # what read_clip gives
Out = TypeVar("Out")


@dataclass(frozen=True)
class TrainingBatch:
    """A worker's part of a global batch, and everything random that its loss needs."""

    latents: LatentBatch
    noise: Tensor  # (B, F, C, h, w) float32
    image_noise: Tensor  # (B, C, h, w) float32, and
    image_level: Tensor  # (B,) float32, both standard normal: what TimeNoise disturbs the image condition with
    seeds: Tensor  # (B,) int64 on the CPU, of what is drawn later: noise on image tokens; the first, of dropout
    index: Tensor  # (B,) int64 time index in 0..999, always on the CPU, where the schedules are
    weight: Tensor  # (B,) float32: 1, or 0 for what does not count: a repeat that fills a share up, a damaged clip
    damaged: tuple[str, ...] = ()  # what is wrong with the clips of this batch that could not be read

    def to(self, device: torch.device) -> "TrainingBatch":
        return replace(
            self,
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            image_noise=self.image_noise.to(device),
            image_level=self.image_level.to(device),
            weight=self.weight.to(device),
        )


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
    kept: Kept | None = None,
) -> Source:
    """The cache's training clips, with F_eta's cached output where `read_prior` gives it; read through `kept`, if any."""
    rows = cache.select(TRAIN)
    return _source(cache, rows, classes, label_dropout, seed, read_prior, kept)


def validation_source(
    cache: Cache,
    classes: list[str],
    clips: int,
    seed: int,
    read_prior: Read | None = None,
    kept: Kept | None = None,
) -> Source:
    """At most `clips` held-out clips, spread evenly over the sorted keys; no label is dropped."""
    held_out = cache.select(TEST)
    count = min(clips, len(held_out))
    rows = [held_out[i * len(held_out) // count] for i in range(count)]
    return _source(cache, rows, classes, 0.0, seed, read_prior, kept)


def _source(
    cache: Cache,
    rows: Sequence[ManifestRow],
    classes: list[str],
    label_dropout: float,
    seed: int,
    read_prior: Read | None,
    kept: Kept | None,
) -> Source:
    return Source(
        rows,
        cache.shares if isinstance(cache, Mix) else ((len(rows), len(rows)),),
        reader(cache, rows, kept),
        tuple(cache.info["latent_shape"]),
        cache.info["scaling_factor"],
        classes,
        label_dropout,
        seed,
        read_prior,
        at_once=READS if any(map(is_remote, paths_of(cache))) else 1,
    )


def with_text(source: Source, cache: Cache, kept: Kept | None = None) -> Source:
    """The same clips with the embeddings of their captions, for a model that takes text. Raises UserError."""
    if cache.info["text_shape"] is None:
        raise UserError(f"{cache.path}: holds no text, which the model takes; set text.path and cache again")
    null_text = read_null_text(cache.path) if source.label_dropout else None
    read = functools.partial(text_of, cache, kept=kept)
    return replace(source, read_text=read, text_shape=tuple(cache.info["text_shape"]), null_text=null_text)


def text_of(cache: Cache, row: ManifestRow, kept: Kept | None = None) -> np.ndarray:
    """float16 (tokens, width): the embedding of a clip's caption. Raises CorruptShard."""
    text = through(kept, read_text, cache_of(cache, row), row)
    if text is None:
        raise CorruptShard(f"clip {row['key']}: has no text in {cache_of(cache, row)}; cache again")
    return text


def reader(cache: Cache, rows: Sequence[ManifestRow], kept: Kept | None = None) -> Read:
    """What gives the posterior of a clip, (2, F, C, h, w) float16; held once read where all fit into memory."""

    def read(row: ManifestRow) -> np.ndarray:
        return through(kept, read_latent, cache_of(cache, row), row)

    if rows and len(rows) * rows[0].get("length", 0) > IN_MEMORY:  # all are of one length; planned clips have none
        return read
    held: dict[tuple[str, str], np.ndarray] = {}

    def read_once(row: ManifestRow) -> np.ndarray:
        place = cache_of(cache, row), row["key"]
        if place not in held:
            held[place] = read(row)
        return held[place]

    return read_once


def through(kept: Kept | None, read: Callable[..., Out], path: str, row: ManifestRow) -> Out:
    """`read` a clip of the cache at `path`, on this node's disk if it is there, and not damaged. Raises CorruptShard."""
    if kept is not None and is_remote(path):
        with contextlib.suppress(CorruptShard):
            return read(path, row, kept.read_range)
    return read(path, row)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, shares: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(sum of draws,) int64: the order of an epoch; of one cache a permutation of its rows sorted by key."""
    if len(shares) > 1:
        return mixed_order(seed, epoch, shares)
    return np.random.default_rng([seed, epoch]).permutation(shares[0][0])


def global_batch(seed: int, step: int, size: int, shares: tuple[tuple[int, int], ...]) -> list[int]:
    """The rows of global batch `step` (from 0), which may reach into the next epoch."""
    positions, length = range(step * size, (step + 1) * size), sum(drawn for _, drawn in shares)
    epochs = {epoch: epoch_order(seed, epoch, shares) for epoch in sorted({p // length for p in positions})}
    return [int(epochs[p // length][p % length]) for p in positions]


def share(size: int, rank: int, workers: int) -> range:
    """The indices in a global batch of `size` that fall to a worker: contiguous, and as even as can be."""
    return range(size * rank // workers, size * (rank + 1) // workers)


def split(size: int, micro: int, workers: int) -> tuple[int, int]:
    """(clips in a piece, pieces) of every worker's share of a global batch of `size`: pieces of at most `micro` clips,
    alike on all workers. Where they hold more places than there are clips, repeats of weight 0 fill them.
    """
    most = -(-size // workers)
    pieces = -(-most // micro)
    return -(-most // pieces), pieces


def generator(seed: int, stream: str, step: int, index: int) -> torch.Generator:
    """The randomness of one sample, whatever the worker that it falls to."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Drawn(NamedTuple):
    """All that is random in a sample, in the order in which it is drawn; of a batch, all with a first dimension more."""

    posterior_noise: Tensor  # (F, C, h, w)
    noise: Tensor  # (F, C, h, w)
    time: Tensor  # () int64, its index
    left_out: Tensor  # () uniform in 0..1, what `dropped` goes by
    image_noise: Tensor  # (C, h, w)
    image_level: Tensor  # () standard normal
    seed: Tensor  # () int64


def draw(shape: tuple[int, ...], random: torch.Generator) -> Drawn:
    """What is random in a sample of latents (F, C, h, w)."""
    posterior_noise, noise = torch.randn((2, *shape), generator=random)
    return Drawn(
        posterior_noise,
        noise,
        torch.randint(TIMESTEPS, (), generator=random),
        torch.rand((), generator=random),
        torch.randn(shape[1:], generator=random),
        torch.randn((), generator=random),
        torch.randint(2**62, (), generator=random),
    )


def make_batch(
    source: Source,
    picks: Sequence[tuple[int, int]],
    stream: str,
    step: int,
    counted: int | None = None,
    clips: Iterable[tuple[ManifestRow, Clip]] | None = None,
) -> TrainingBatch:
    """A batch of (row, index in the global batch) pairs, of which the first `counted` count, or all; see the module's
    docstring for its randomness. A clip that is not what was written is zeros of no weight. `clips`: those of the picks,
    where they are not to be read.
    """
    rows, read = zip(*(read_clips(source, picks) if clips is None else clips), strict=True)
    means, logvars, texts, problems = zip(*read, strict=True)
    samples = [draw(source.latent_shape, generator(source.seed, stream, step, index)) for _, index in picks]
    drawn = Drawn(*map(torch.stack, zip(*samples, strict=True)))
    without, without_image = dropped(drawn.left_out, source.label_dropout)
    # clip by clip: exp() of a larger tensor may be rounded another way
    z0 = [
        sample_posterior(mean, logvar, noise, source.scaling_factor)
        for mean, logvar, noise in zip(means, logvars, drawn.posterior_noise, strict=True)
    ]
    labels = ["" if left_out else row["label"] for row, left_out in zip(rows, without, strict=True)]
    captions = prior = None
    if texts[0] is not None:
        shown = zip(texts, without, strict=True)
        captions = torch.stack(
            [torch.from_numpy(source.null_text).float() if left_out else text for text, left_out in shown]
        )
    if source.read_prior is not None:
        outputs = np.stack([source.read_prior(source.rows[position]) for position, _ in picks])
        prior = torch.from_numpy(outputs.astype(np.float32))
    counts = torch.arange(len(picks)) < (len(picks) if counted is None else counted)
    return TrainingBatch(
        latents=LatentBatch(
            keys=[row["key"] for row in rows],
            z0=torch.stack(z0),
            label=class_indices(labels, source.classes),
            stride=torch.tensor([float(row["stride"]) for row in rows]),
            image_shown=~without_image,
            text=captions,
            prior=prior,
        ),
        noise=drawn.noise,
        image_noise=drawn.image_noise,
        image_level=drawn.image_level,
        seeds=drawn.seed,
        index=drawn.time,
        weight=(counts & torch.tensor([not problem for problem in problems])).float(),
        damaged=tuple(problem for problem in problems if problem),
    )


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


def training_batches(
    source: Source,
    size: int,
    micro: int,
    rank: int,
    workers: int,
    start: int,
    stop: int,
    clips: Iterator[tuple[ManifestRow, Clip]] | None = None,
) -> Iterator[list[TrainingBatch]]:
    """For each step from `start` to `stop` - 1 this worker's share of the global batch, in pieces as `split` says.

    `clips`: this worker's clips of those steps in order, where they are not to be read (online.py).
    """
    mine = share(size, rank, workers)
    piece, pieces = split(size, micro, workers)

    def make(step: int) -> list[TrainingBatch]:
        rows = global_batch(source.seed, step, size, source.shares)
        picks = [(rows[index], index) for index in mine]
        places = picks + [(rows[0], 0)] * (piece * pieces - len(picks))
        given = None if clips is None else list(itertools.islice(clips, len(picks)))
        if given is not None:
            given += [given[0]] * (len(places) - len(picks))
        return [
            make_batch(source, places[i : i + piece], "train", step, len(picks) - i, given and given[i : i + piece])
            for i in range(0, len(places), piece)
        ]

    return prefetch(make, range(start, stop))


def validation_batches(source: Source, micro: int, rank: int, workers: int) -> list[TrainingBatch]:
    """This worker's share of the held-out clips, at fixed noises and at times spread evenly over 0..999.

    Every worker gets equally many pieces of equal size; repeats that fill them up have weight 0.
    """
    count = len(source.rows)
    if not count:
        return []
    padded = -(-count // (micro * workers)) * micro * workers
    pieces = []
    mine = share(padded, rank, workers)
    for start in range(mine.start, mine.stop, micro):
        places = range(start, start + micro)
        batch = make_batch(source, [(place % count, place) for place in places], "validation", 0)
        index = torch.tensor([(2 * (place % count) + 1) * TIMESTEPS // (2 * count) for place in places])
        weight = torch.tensor([float(place < count) for place in places])
        pieces.append(replace(batch, index=index, weight=weight * batch.weight))
    return pieces
