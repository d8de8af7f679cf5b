"""SEVERAL CACHES -> ONE: training draws from each in proportion to its weight (cache.mix).

An epoch of a mix has as many draws as its caches hold training clips together. Cache i gets n_i of them, in proportion
to its weight (rounded by largest remainder), at places that (seed, epoch) shuffles. Its own clips come in passes, each
shuffled by (seed, pass, i): no clip comes again before all clips of its cache have come, and a pass that is cut off by
the end of an epoch continues in the next. So the order depends on seed, epoch, caches and weights alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from ...errors import UserError
from ...schema import TRAIN, ManifestRow
from ...settings import MixedCache
from ..cache.info import CacheSpec, check_same, differences
from ..cache.manifest import Cache, Rows, open_cache
from .order import mix_counts

CACHE_COLUMN = "cache"  # of a mix's table: the path of the cache that holds a clip


class Part(NamedTuple):
    """One cache of a mix."""

    path: str
    weight: float
    fingerprint: str
    clips: int  # training clips
    keys: str  # hash of its clips


@dataclass(frozen=True)
class Mix(Cache):
    """Several caches as one: their clips one cache after another, with CACHE_COLUMN, and the classes of all."""

    parts: tuple[Part, ...]

    @property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """(training clips, draws an epoch) of each cache."""
        clips = [part.clips for part in self.parts]
        return tuple(zip(clips, mix_counts(clips, [part.weight for part in self.parts]), strict=True))


def open_training_cache(path: str, mix: Sequence[MixedCache], wanted: CacheSpec) -> Cache:
    """Open what training reads: the cache at `path` or, if `mix` names some, the Mix of those.

    `wanted`: the spec that the settings give, as the driver resolved it, or that of the cache as it found it. Neither
    the VAE, nor the text encoder, nor the videos need exist here. Raises UserError where there is no cache, or one was
    not made as `wanted` says.
    """
    if not mix:
        cache = open_cache(path)
        check_same(cache.path, cache.spec, wanted)
        return cache
    caches = [open_cache(one.path.rstrip("/")) for one in mix]
    for cache in caches:
        check_alike(cache, wanted)
    parts = tuple(
        Part(cache.path, one.weight, cache.spec.fingerprint, len(cache.select(TRAIN)), hash_of_clips(cache))
        for cache, one in zip(caches, mix, strict=True)
    )
    if empty := [part.path for part in parts if not part.clips]:
        raise UserError(f"{empty[0]}: holds no training clips; take it out of cache.mix, or cache more videos there")
    paths = [pa.repeat(pa.scalar(cache.path), cache.table.num_rows) for cache in caches]
    tables = [cache.table.append_column(CACHE_COLUMN, path) for cache, path in zip(caches, paths, strict=True)]
    fingerprints = "+".join(part.fingerprint for part in parts)
    spec = replace(
        caches[0].spec,
        classes=sorted({name for cache in caches for name in cache.spec.classes}),
        fingerprint=hashlib.blake2b(fingerprints.encode(), digest_size=16).hexdigest(),
    )
    mixed = Mix(caches[0].path, spec, pa.concat_tables(tables), caches[0].rejected.slice(0, 0), parts)
    if any(not draws for _, draws in mixed.shares):
        weights = [part.weight for part in parts]
        raise UserError(f"cache.mix: the weights {weights} leave a cache without one clip an epoch; raise the least")
    return mixed


def check_alike(cache: Cache, wanted: CacheSpec) -> None:
    """Raise UserError unless a cache of a mix holds what the settings describe: the same VAE, text encoder and size.

    Which windows of which videos were taken may differ from cache to cache.
    """
    found, ours = (
        {key: value for key, value in spec.settings.items() if key.startswith(("vae.", "text."))}
        | {"latents": spec.latent_shape}
        for spec in (cache.spec, wanted)
    )
    if different := differences(found, ours):
        raise UserError(f"{cache.path}: cannot be mixed in ({different}); set them alike, or take it out of cache.mix")


def hash_of_clips(cache: Cache) -> str:
    """BLAKE2b of the keys, splits and labels of all clips."""
    digest = hashlib.blake2b(digest_size=8)
    for row in Rows(cache.table.select(["key", "split", "label"])):
        digest.update(f"{row['key']} {row['split']} {row['label']}\n".encode())
    return digest.hexdigest()


def cache_of(cache: Cache, row: ManifestRow) -> str:
    """The path of the cache that a row of `cache` lies in."""
    return row[CACHE_COLUMN] if isinstance(cache, Mix) else cache.path  # type: ignore[literal-required]


def paths_of(cache: Cache) -> list[str]:
    """The paths of the caches that hold the clips of `cache`."""
    return [part.path for part in cache.parts] if isinstance(cache, Mix) else [cache.path]
