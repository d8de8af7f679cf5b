"""F_eta's output for each clip, beside the latents: bridge training need not run the prior at every step.

    CACHE/priors/HASH/prior.json            which cache and which checkpoint (HASH: of its weights); the shape
    CACHE/priors/HASH/SHARD.npy             float16 (N, F, C, h, w): the shard's N clips, sorted by key

Shards never change, so neither do these; a shard that came later has none yet. The stored output is made from the
clip's own class and the mean of its image's posterior, as in sampling. Computed in training, it would see a sample of
the posterior, and the null class where the label is dropped.
"""

import functools
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import pyarrow.compute as pc
import torch

from ...errors import UserError
from ...models.build import class_indices
from ...models.prior import NeuralPrior
from ...schema import ManifestRow
from ...storage.files import list_files, read_json, read_range, write_bytes, write_json
from .manifest import Cache, Rows
from .shards import npy_bytes, read_latent

PRIOR = "prior.json"
HEADER = 128  # bytes before the numbers in a .npy of few dimensions: the format pads to 64
AT_ONCE = 16  # clips that go through the prior together


def folder_of(cache_path: str, weights: str) -> str:
    """The folder of the outputs of the prior whose weights have this hash."""
    return f"{cache_path}/priors/{weights}"


def describe_prior(cache: Cache, weights: str, prior_path: str) -> None:
    """Write prior.json: the origin of the outputs beside it."""
    found = {"cache_fingerprint": cache.spec.fingerprint, "prior_weights": weights, "prior_path": prior_path}
    write_json(f"{folder_of(cache.path, weights)}/{PRIOR}", found | {"latent_shape": cache.spec.latent_shape})


def rows_of_shard(cache: Cache, shard: str) -> Rows:
    """The clips of a shard in the order of its outputs."""
    return Rows(cache.table.filter(pc.equal(cache.table["shard"], shard)).sort_by("key"))


def missing_shards(cache: Cache, weights: str) -> list[str]:
    """Shards of the cache whose outputs are not there yet, sorted."""
    there = {_stem(address) for address in list_files(folder_of(cache.path, weights), ".npy")}
    return sorted(shard for shard in cache.table["shard"].unique().to_pylist() if _stem(shard) not in there)


def save_outputs(cache: Cache, weights: str, shard: str, outputs: np.ndarray) -> None:
    """Write the (N, F, C, h, w) outputs of a shard's clips, in the order of `rows_of_shard`."""
    content = npy_bytes(outputs.astype(np.float16))
    assert len(content) == HEADER + 2 * outputs.size
    write_bytes(f"{folder_of(cache.path, weights)}/{_stem(shard)}.npy", content)


def prior_reader(cache: Cache, weights: str) -> Callable[[ManifestRow], np.ndarray]:
    """Return a function that reads F_eta's output for a manifest row, (F, C, h, w) float16.

    Raises UserError as `check_outputs`.
    """
    check_outputs(cache, weights)
    folder, shape = folder_of(cache.path, weights), tuple(cache.spec.latent_shape)
    size = 2 * int(np.prod(shape))

    @functools.cache
    def positions(shard: str) -> dict[str, int]:
        return {key: place for place, key in enumerate(rows_of_shard(cache, shard).table["key"].to_pylist())}

    def read(row: ManifestRow) -> np.ndarray:
        place = positions(row["shard"])[row["key"]]
        content = read_range(f"{folder}/{_stem(row['shard'])}.npy", HEADER + place * size, size)
        return np.frombuffer(content, np.float16).reshape(shape)

    return read


def check_outputs(cache: Cache, weights: str) -> None:
    """Raise UserError unless every clip of this cache has its output of the prior with these weights."""
    folder = folder_of(cache.path, weights)
    remedy = "run jobs/cache_prior.py with the same settings, or set bridge.cached_prior false"
    try:
        found = read_json(f"{folder}/{PRIOR}")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no outputs of this neural prior (bridge.cached_prior); {remedy}") from error
    if found["cache_fingerprint"] != cache.spec.fingerprint or found["prior_weights"] != weights:
        raise UserError(
            f"{folder}: outputs of prior {found['prior_weights']} on cache {found['cache_fingerprint']}, not of "
            f"{weights} on {cache.spec.fingerprint}; delete that folder and {remedy}"
        )
    if lacking := missing_shards(cache, weights):
        raise UserError(f"{folder}: {len(lacking)} shards are without outputs, the first {lacking[0]}; {remedy}")


def _stem(address: str) -> str:
    return PurePosixPath(address).stem


@torch.inference_mode()
def outputs_of(prior: NeuralPrior, classes: list[str], cache: Cache, rows: Rows, device: str) -> np.ndarray:
    """(N, F, C, h, w) float32, from the scaled mean of each clip's first frame and its class. Raises CorruptShard."""
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        some = list(rows[start : start + AT_ONCE])
        images = np.stack([read_latent(cache.path, row)[0, 0] for row in some]).astype(np.float32)
        image_latent = torch.from_numpy(images * cache.spec.scaling_factor).to(device)
        labels = class_indices([row["label"] for row in some], classes).to(device)
        parts.append(prior(image_latent, labels).float().cpu().numpy())
    return np.concatenate(parts)
