"""cache.json: what decides a latent's value, and how latents are shaped and scaled (schema.CacheInfo)."""

import hashlib
import json
import logging
import math
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...models.files.text import find_text_encoder, text_identity
from ...models.files.vae import vae_geometry, vae_identity
from ...schema import CacheInfo
from ...settings import VAE_DOWNSAMPLING, Settings
from ...storage.files import read_json, write_json

if TYPE_CHECKING:
    pass


log = logging.getLogger("cache")


def clip_bytes(settings: Settings) -> int:
    """Bytes of a clip's latent: float16 mean and log-variance."""
    return 2 * 2 * math.prod(latent_shape(settings))


VERSION = 1


INFO = "cache.json"


VAE_HASH = "vae.path (hash of its weights)"  # a key of CacheInfo.settings


def require_info(path: str) -> CacheInfo:
    """As read_info. Raises UserError if there is no cache."""
    info = read_info(path)
    if info is None:
        raise UserError(f"{path}: no cache there; make one with jobs/cache_latents.py, or give another --cache.path")
    return info


def read_info(path: str) -> CacheInfo | None:
    """cache.json, or None if there is none. Raises UserError if it is unreadable or of another version."""
    address = f"{path}/{INFO}"
    try:
        info = read_json(address)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"{address}: not valid JSON ({error}); give another --cache.path, or delete that cache"
        ) from error
    if not isinstance(info, dict) or info.get("version") != VERSION:
        found = info.get("version") if isinstance(info, dict) else None
        raise UserError(f"{address}: is of version {found}, expected {VERSION}; give another --cache.path")
    return info  # type: ignore[return-value]


def describe(settings: Settings, classes: list[str]) -> CacheInfo:
    """What cache.json says of a cache made with `settings`. Raises UserError if the VAE cannot be found."""
    weights_hash, scaling_factor = vae_identity(settings.vae.path)
    data = settings.data
    decisive: dict[str, Any] = {
        "data.frames": data.frames,
        "data.window": data.window,
        "data.stride": data.stride if isinstance(data.stride, int) else list(data.stride),
        "data.clips_per_video": data.clips_per_video,
        "data.clip_starts": data.clip_starts,
        "data.clip_seed": data.clip_seed,
        "data.flip": data.flip,
        "data.short_video": data.short_video,
        "data.height": data.height,
        "data.width": data.width,
        "vae.dtype": settings.vae.dtype,
        VAE_HASH: weights_hash,
    }
    text_shape = None
    if settings.text.path is not None:
        files = find_text_encoder(settings.text.path, settings.text.tokenizer)
        text_shape = [settings.text.max_length, files.width]
        decisive |= {
            "text.path (hash of its files)": text_identity(files),
            "text.layer": settings.text.layer,
            "text.max_length": settings.text.max_length,
            "text.dtype": settings.text.dtype,
        }
    digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()
    return CacheInfo(
        version=VERSION,
        fingerprint=digest,
        settings=decisive,
        scaling_factor=scaling_factor,
        latent_shape=latent_shape(settings),
        text_shape=text_shape,
        classes=classes,
    )


def latent_shape(settings: Settings) -> list[int]:
    """F, C, h, w of a clip's latent. Raises UserError if the VAE cannot be found, or cannot take so many frames."""
    data = settings.data
    channels, temporal = vae_geometry(settings.vae.path)
    if temporal > 1 and (data.frames - 1) % (2 * temporal):
        fewer = data.frames - (data.frames - 1) % (2 * temporal)
        raise UserError(
            f"data.frames = {data.frames}: the VAE of vae.path = {settings.vae.path} gives back 1 + a multiple of "
            f"{2 * temporal} frames; set {fewer} or {fewer + 2 * temporal}"
        )
    frames = (data.frames - 1) // temporal + 1
    return [frames, channels, data.height // VAE_DOWNSAMPLING, data.width // VAE_DOWNSAMPLING]


def check_same(path: str, found: CacheInfo, wanted: CacheInfo) -> None:
    """Raise UserError, with each difference, if the cache was made with other settings than `wanted`."""
    if found["fingerprint"] == wanted["fingerprint"]:
        return
    ours, theirs = wanted["settings"], found["settings"]
    differences = [
        f"{key}: cache has {_short(theirs.get(key))}, settings say {_short(ours.get(key))}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    raise UserError(
        f"{path}: this cache was made with other settings ({'; '.join(differences)}); "
        "set them alike, or make a new cache with another --cache.path or --run.name"
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def write_info(path: str, info: CacheInfo) -> None:
    """Write cache.json; classes that an earlier run found stay. Raises UserError if that had other settings."""
    earlier = read_info(path)
    if earlier is not None:
        check_same(path, earlier, info)
    classes = sorted({*info["classes"], *(earlier["classes"] if earlier else [])})
    if earlier is None or earlier["classes"] != classes:
        write_json(f"{path}/{INFO}", {**info, "classes": classes})
