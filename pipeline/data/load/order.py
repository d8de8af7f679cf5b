"""The order of training clips: a function of (seed, epoch, cache) alone.

The shuffled clips of every epoch follow one another in one long stream. Global batch k holds entries k*G to
(k+1)*G - 1 of it, so every clip comes once an epoch and nothing is dropped. mix.py says what an epoch of several caches
is.
"""

import functools
from collections.abc import Sequence

import numpy as np


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, shares: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(sum of draws,) int64: the order of an epoch; for one cache, a permutation of its rows sorted by key."""
    if len(shares) > 1:
        return mixed_order(seed, epoch, shares)
    return np.random.default_rng([seed, epoch]).permutation(shares[0][0])


def global_batch(seed: int, step: int, size: int, shares: tuple[tuple[int, int], ...]) -> list[int]:
    """The rows of global batch `step`, counted from 0; it may reach into the next epoch."""
    positions, length = range(step * size, (step + 1) * size), sum(drawn for _, drawn in shares)
    epochs = {epoch: epoch_order(seed, epoch, shares) for epoch in sorted({p // length for p in positions})}
    return [int(epochs[p // length][p % length]) for p in positions]


def rank_slice(size: int, rank: int, workers: int) -> range:
    """A worker's indices in a global batch of `size`: contiguous, and at most one fewer than on another worker."""
    return range(size * rank // workers, size * (rank + 1) // workers)


def micro_batching(size: int, micro: int, workers: int) -> tuple[int, int]:
    """(clips of a micro-batch, micro-batches of a step): the same on all workers, at most `micro` clips in each.

    Where they hold more than a worker's slice of a global batch of `size`, repeats of weight 0 fill them.
    """
    most = -(-size // workers)
    micro_batches = -(-most // micro)
    return -(-most // micro_batches), micro_batches


def mix_counts(clips: Sequence[int], weights: Sequence[float]) -> list[int]:
    """The draws of an epoch from each cache: sum(clips) in proportion to the weights, by largest remainder."""
    total = sum(clips)
    exact = np.asarray(weights, float) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return counts.tolist()


def mixed_order(seed: int, epoch: int, shares: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(sum of draws,) int64: the order of an epoch of several caches; rows are numbered one cache after another."""
    owners = np.repeat(np.arange(len(shares)), [count for _, count in shares])
    np.random.default_rng([seed, epoch]).shuffle(owners)
    order = np.empty(len(owners), np.int64)
    first = 0
    for index, (clips, count) in enumerate(shares):
        position = np.arange(epoch * count, (epoch + 1) * count)  # in this cache's own stream of passes
        passes = [
            np.random.default_rng([seed, number, index + 1]).permutation(clips)
            for number in range(position[0] // clips, position[-1] // clips + 1)
        ]
        order[owners == index] = first + np.concatenate(passes)[position - position[0] // clips * clips]
        first += clips
    return order
