"""CLIPS -> TRAINING BATCHES: the k-th global batch is the same on any number of workers, before and after a restart.

order.py says which clips a global batch holds. Each worker takes a contiguous slice of it, and everything random in a
sample comes from a generator that is seeded by (seed, stream, step, index in the global batch).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models.build import class_indices
from ...models.conditioning import dropout_masks
from ...models.vae import sample_posterior
from ...schema import LatentBatch, ManifestRow
from .order import global_batch, micro_batching, rank_slice
from .prefetch import prefetch
from .randomness import TIMESTEPS, SampleNoise, draw, generator
from .reader import Clip, Source


@dataclass(frozen=True)
class TrainingBatch:
    """A worker's part of a global batch, and everything random that its loss needs."""

    latents: LatentBatch
    noise: Tensor  # (B, F, C, h, w) float32
    image_noise: Tensor  # (B, C, h, w) float32 standard normal: TimeNoise adds it to the image condition
    image_level: Tensor  # (B,) float32 standard normal: TimeNoise draws its level from it
    seeds: Tensor  # (B,) int64 on the CPU: for noise on image tokens; the first also for dropout
    index: Tensor  # (B,) int64 on the CPU, where the schedules are: time index in 0..999
    weight: Tensor  # (B,) float32: 1, or 0 for a repeat that fills the batch and for a damaged clip
    damaged: tuple[str, ...] = ()  # what is wrong with the clips of this batch that could not be read

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on another device, but for `seeds` and `index`."""
        moved = ("latents", "noise", "image_noise", "image_level", "weight")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})


def make_batch(
    source: Source,
    picks: Sequence[tuple[int, int]],
    stream: str,
    step: int,
    counted: int | None = None,
    clips: Sequence[tuple[ManifestRow, Clip]] | None = None,
) -> TrainingBatch:
    """Make a batch of (position in source.rows, index in the global batch) pairs.

    The generator of a sample is seeded by (source.seed, stream, step, index). The first `counted` samples count, or
    all; a damaged clip has no weight. `clips`: the clips of `picks`, where they have been read already.
    """
    rows, read = zip(*(clips or source.read([position for position, _ in picks])), strict=True)
    means, logvars, texts, priors, problems = zip(*read, strict=True)
    samples = [draw(source.latent_shape, generator(source.seed, stream, step, index)) for _, index in picks]
    drawn = SampleNoise(*map(torch.stack, zip(*samples, strict=True)))
    without, without_image = dropout_masks(drawn.left_out, source.label_dropout)
    # clip by clip: exp() of a larger tensor may be rounded another way
    z0 = [
        sample_posterior(mean, logvar, noise, source.cache.spec.scaling_factor)
        for mean, logvar, noise in zip(means, logvars, drawn.posterior_noise, strict=True)
    ]
    labels = ["" if left_out else row["label"] for row, left_out in zip(rows, without, strict=True)]
    shown = [source.null_text if drop else text for text, drop in zip(texts, without, strict=True) if source.text]
    good = torch.tensor([problem is None for problem in problems])
    return TrainingBatch(
        latents=LatentBatch(
            keys=[row["key"] for row in rows],
            z0=torch.stack(z0),
            label=class_indices(labels, source.classes),
            stride=torch.tensor([float(row["stride"]) for row in rows]),
            image_shown=~without_image,
            text=torch.stack(shown) if source.text else None,
            prior=torch.stack(priors) if source.read_prior else None,
        ),
        noise=drawn.noise,
        image_noise=drawn.image_noise,
        image_level=drawn.image_level,
        seeds=drawn.seed,
        index=drawn.time,
        weight=(good & (torch.arange(len(picks)) < (len(picks) if counted is None else counted))).float(),
        damaged=tuple(problem for problem in problems if problem),
    )


def training_batches(
    source: Source, size: int, micro: int, rank: int, workers: int, steps: range
) -> Iterator[list[TrainingBatch]]:
    """Yield for each step this worker's slice of the global batch of `size` clips, in micro-batches of at most `micro`.

    Number and size of the micro-batches are the same on all workers (`micro_batching`); repeats of weight 0 fill them.
    """
    mine = rank_slice(size, rank, workers)
    micro_batch, micro_batches = micro_batching(size, micro, workers)
    padding = micro_batch * micro_batches - len(mine)

    def make(step: int) -> list[TrainingBatch]:
        positions = global_batch(source.seed, step, size, source.shares)
        picks = [(positions[index], index) for index in mine]
        clips = source.read([position for position, _ in picks])
        picks, clips = picks + picks[:1] * padding, clips + clips[:1] * padding
        return [
            make_batch(source, picks[i : i + micro_batch], "train", step, len(mine) - i, clips[i : i + micro_batch])
            for i in range(0, len(picks), micro_batch)
        ]

    return prefetch(make, steps)


def validation_batches(source: Source, micro: int, rank: int, workers: int) -> list[TrainingBatch]:
    """Make this worker's share of the held-out clips, with fixed noise and times spread evenly over 0..999.

    Every worker gets the same number of micro-batches of `micro` clips; repeats of weight 0 fill them.
    """
    count = len(source.rows)
    padded = -(-count // (micro * workers)) * micro * workers
    micro_batches = []
    mine = rank_slice(padded, rank, workers)
    for start in range(mine.start, mine.stop, micro):
        places = range(start, start + micro)
        batch = make_batch(source, [(place % count, place) for place in places], "validation", 0, count - start)
        index = torch.tensor([(2 * (place % count) + 1) * TIMESTEPS // (2 * count) for place in places])
        micro_batches.append(replace(batch, index=index))
    return micro_batches
