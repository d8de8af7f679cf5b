"""cache.json and CacheSpec: what decides a latent's value, and how latents are shaped and scaled."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...errors import UserError
from ...models.files.text import find_text_encoder, text_identity
from ...models.files.vae import vae_geometry, vae_identity
from ...settings import DataSettings, TextSettings, VaeSettings
from ...storage.files import read_json, write_json

VERSION = 1
INFO = "cache.json"
VAE_HASH = "vae.path (hash of its weights)"  # a key of CacheSpec.settings
# settings of section data that decide a latent's value
DECISIVE = {"frames", "window", "stride", "clips_per_video", "clip_starts", "clip_seed", "flip", "short_video"}
DECISIVE |= {"height", "width"}


@dataclass(frozen=True)
class CacheSpec:
    """All that decides or describes a cache: the content of cache.json, as JSON holds it.

    The driver resolves it once from the settings (resolve_spec), or reads it from an existing cache (read_spec).
    Workers get this in place of the VAE, the text encoder and the videos, which need not exist where they run.
    """

    fingerprint: str  # hash of `settings`
    settings: dict[str, Any]  # clip windows, size, and hash and dtype of the VAE and the text encoder
    scaling_factor: float  # z = scaling_factor * posterior sample
    latent_shape: list[int]  # F, C, h, w
    text_shape: list[int] | None = None  # tokens, width; None without text
    classes: list[str] = field(default_factory=list)  # sorted names; [] if the source has none

    @property
    def vae_weights_hash(self) -> str:
        """Hash of the weights of the VAE that made the latents."""
        return self.settings[VAE_HASH]

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip's latent: float16 mean and log-variance."""
        return 2 * 2 * math.prod(self.latent_shape)


def resolve_spec(data: DataSettings, vae: VaeSettings, text: TextSettings, classes: Iterable[str] = ()) -> CacheSpec:
    """The spec of a cache that these settings make. Raises UserError.

    Reads the VAE and the text encoder, so only the driver calls it.
    """
    weights_hash, scaling_factor = vae_identity(vae.path)
    decisive = {f"data.{name}": value for name, value in data.model_dump(mode="json", include=DECISIVE).items()}
    decisive |= {"vae.dtype": vae.dtype, VAE_HASH: weights_hash}
    text_shape = None
    if text.path is not None:
        files = find_text_encoder(text.path, text.tokenizer)
        text_shape = [text.max_length, files.width]
        decisive |= {"text.path (hash of its files)": text_identity(files), "text.layer": text.layer}
        decisive |= {"text.max_length": text.max_length, "text.dtype": text.dtype}
    fingerprint = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()
    return CacheSpec(fingerprint, decisive, scaling_factor, _latent_shape(data, vae), text_shape, sorted(classes))


def _latent_shape(data: DataSettings, vae: VaeSettings) -> list[int]:
    """F, C, h, w of a clip's latent. Raises UserError if the VAE cannot take this number of frames."""
    channels, temporal = vae_geometry(vae.path)
    if temporal > 1 and (data.frames - 1) % (2 * temporal):
        fewer = data.frames - (data.frames - 1) % (2 * temporal)
        raise UserError(
            f"data.frames = {data.frames}: the VAE of vae.path = {vae.path} gives back 1 + a multiple of "
            f"{2 * temporal} frames; set {fewer} or {fewer + 2 * temporal}"
        )
    return [(data.frames - 1) // temporal + 1, channels, *data.latent_size]


def require_spec(path: str) -> CacheSpec:
    """As read_spec. Raises UserError also if there is no cache."""
    spec = read_spec(path)
    if spec is None:
        raise UserError(f"{path}: no cache there; make one with jobs/cache_latents.py, or give another --cache.path")
    return spec


def read_spec(path: str) -> CacheSpec | None:
    """Read cache.json of the cache at `path`; None if there is none.

    Raises UserError if the file is unreadable, of another version or incomplete.
    """
    address, remedy = f"{path}/{INFO}", "give another --cache.path, or delete that cache"
    try:
        found = read_json(address)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{address}: not valid JSON ({error}); {remedy}") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise UserError(f"{address}: is of version {version}, expected {VERSION}; give another --cache.path")
    names = [each.name for each in fields(CacheSpec)]
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{address}: has no key {' and '.join(missing)}; restore the file, or {remedy}")
    return CacheSpec(**{name: found[name] for name in names})


def check_same(path: str, found: CacheSpec, wanted: CacheSpec) -> None:
    """Raise UserError, with each difference, if the cache was made with other settings than `wanted`."""
    if found.fingerprint == wanted.fingerprint:
        return
    raise UserError(
        f"{path}: this cache was made with other settings ({differences(found.settings, wanted.settings)}); "
        "set them alike, or make a new cache with another --cache.path or --run.name"
    )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Each key whose value in the cache is not the wanted one, with both; "" if there is none."""
    return "; ".join(
        f"{key}: cache has {_short(found.get(key))}, settings say {_short(wanted.get(key))}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def write_spec(path: str, spec: CacheSpec) -> None:
    """Write cache.json; classes that an earlier run found stay. Raises UserError if that run had other settings."""
    earlier = read_spec(path)
    if earlier is not None:
        check_same(path, earlier, spec)
        spec = replace(spec, classes=sorted({*spec.classes, *earlier.classes}))
    if earlier is None or earlier.classes != spec.classes:
        write_json(f"{path}/{INFO}", {"version": VERSION, **asdict(spec)})
