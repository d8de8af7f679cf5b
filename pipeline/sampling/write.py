"""ITEMS -> FILES: what a sampling actor does with one batch; no Ray here.

Files of an item, in RUN/samples: KEY.image.png, KEY.reconstruction.png (the VAE's own of the image),
KEY.generated.mp4, with sample.gif KEY.generated.gif too, KEY.prior.mp4, KEY.true.mp4 where the true clip is known, and at last KEY.json, which makes it done.
"""

import atexit
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from ..data.cache.info import CacheSpec
from ..data.cache.shards import read_latent
from ..data.decode.child import IsolatedDecoder
from ..data.decode.fetch import DecodeFailure
from ..media import encode_gif, encode_mp4, encode_png
from ..models.prior import replicate
from ..sampling.measures import frame_difference, latent_error, motion_ratio, psnr
from ..schema import ManifestRow
from ..settings import VAE_DOWNSAMPLING, DataSettings
from ..storage.files import read_bytes, write_bytes, write_json
from .generate import LoadedModel, decode_clips, encode_images, generate
from .items import InputRejected, Item, Rejection, open_image


class TrueClips:
    """Held-out clips of a cache: latents from its shards, frames from the source videos. One for each sampling actor."""

    def __init__(self, path: str, spec: CacheSpec, data: DataSettings) -> None:
        """`data`: settings of decoding; what decides a clip is taken from the cache at `path`."""
        names = ("frames", "window", "stride", "short_video", "clip_starts", "clip_seed", "height", "width")
        self.path, self.spec = path, spec
        self._data = data.model_dump() | {name: spec.settings[f"data.{name}"] for name in names}
        self._decoder = IsolatedDecoder()  # a child process, which starts when the first video is read
        atexit.register(self._decoder.close)

    def latents(self, row: ManifestRow) -> torch.Tensor:
        """Scaled posterior means (F, C, h, w) float32."""
        return torch.from_numpy(read_latent(self.path, row)[0].astype(np.float32)) * self.spec.scaling_factor

    def frames(self, row: ManifestRow) -> np.ndarray:
        """The clip once more from its video, uint8 (F, H, W, 3). Raises DecodeFailure."""
        data = DataSettings.model_validate(self._data | {"decoder": row["decoder"]})
        frames, span = self._decoder.decode(row, data)
        if span["source_hash"] != row["source_hash"] or span["start"] != row["start"]:
            raise DecodeFailure("changed", f"{row['uri']} is not the video that was cached")
        return frames


class Original(NamedTuple):
    """What an item starts from, and what it is compared with."""

    image: np.ndarray | None  # uint8 (H, W, 3); None: the source video is gone, `latents` stand in
    latents: torch.Tensor | None  # (F, C, h, w) float32, scaled posterior means of the true clip
    true: np.ndarray | None  # uint8 (F, H, W, 3), from the source video
    note: str  # "" or what to know about it


def sample_batch(
    sampler: LoadedModel, items: list[Item], fingerprints: list[str], clips: TrueClips | None, seed: int, folder: str
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Generate the items and write their files into `folder`. Return their records, as in KEY.json, and the rejected."""
    started = time.monotonic()
    good: list[tuple[Item, str, Original]] = []
    rejected: list[Rejection] = []
    for item, fingerprint in zip(items, fingerprints, strict=True):
        try:
            good.append((item, fingerprint, load_source(item, sampler, clips)))
        except InputRejected as problem:
            rejected.append(Rejection(item["name"], str(problem)))
    if not good:
        return [], rejected
    image_latent = torch.stack([_image_latent(sampler, source) for _, _, source in good])
    labels, keys = [item["label"] for item, _, _ in good], [item["key"] for item, _, _ in good]
    captions = [item["caption"] or item["label"] for item, _, _ in good]
    strides = [float(item["row"]["stride"] if item["row"] else sampler.how.stride) for item, _, _ in good]
    generated, priors = generate(sampler, image_latent, labels, keys, seed, captions, strides)
    records: list[dict[str, Any]] = []
    for index, (item, fingerprint, source) in enumerate(good):
        metrics, files = finish(sampler, source, image_latent[index], generated[index], priors[index])
        for name, content in files.items():
            write_bytes(f"{folder}/{item['key']}.{name}", content)
        record: dict[str, Any] = {"key": item["key"], "name": item["name"], "label": item["label"]}
        record |= {"caption": item["caption"], "fingerprint": fingerprint, "metrics": metrics}
        records.append(record | {"true": "true.mp4" in files, "note": source.note})
    seconds = (time.monotonic() - started) / len(good)
    for record in records:
        record["seconds"] = seconds
        write_json(f"{folder}/{record['key']}.json", record)
    return records, rejected


def finish(
    sampler: LoadedModel, source: Original, image_latent: torch.Tensor, clip: torch.Tensor, prior: torch.Tensor
) -> tuple[dict[str, float | None], dict[str, bytes]]:
    """Metrics and files of one item, from latents (F, C, h, w) and its image latent (C, h, w)."""
    fps = sampler.how.fps
    generated, prior_frames = decode_clips(sampler, torch.stack([clip, prior])).numpy()
    reconstruction = decode_clips(sampler, image_latent[None, None])[0, 0].numpy()
    image = source.image if source.image is not None else reconstruction
    motion = frame_difference(generated)
    metrics: dict[str, float | None] = {
        "psnr_first_frame": psnr(generated[0], reconstruction),
        "psnr_vae": None if source.image is None else psnr(reconstruction, source.image),
        "motion_generated": motion,
    }
    files = {
        "image.png": encode_png(image),
        "reconstruction.png": encode_png(reconstruction),
        "generated.mp4": encode_mp4(generated, fps),
        "prior.mp4": encode_mp4(prior_frames, fps),
    }
    if sampler.how.gif:
        files["generated.gif"] = encode_gif(generated, fps)
    if source.latents is not None:
        reconstructed = decode_clips(sampler, source.latents[None])[0].numpy()
        true = reconstructed if source.true is None else source.true
        still = replicate(image_latent[None].cpu(), len(source.latents))[0]
        metrics |= {
            "motion_true": frame_difference(true),
            "motion_true_vae": frame_difference(reconstructed),
            "motion_ratio": motion_ratio(motion, frame_difference(true)),
            "motion_ratio_vae": motion_ratio(motion, frame_difference(reconstructed)),
            "prior_latent_error": latent_error(prior.cpu(), source.latents),
            "replicated_latent_error": latent_error(still, source.latents),
            "generated_latent_error": latent_error(clip.cpu(), source.latents),
        }
        files["true.mp4"] = encode_mp4(true, fps)
    return metrics, files


def _image_latent(sampler: LoadedModel, source: Original) -> torch.Tensor:
    """(C, h, w), one picture at a time: the rest of a batch must not matter."""
    if source.image is not None:
        return encode_images(sampler, torch.from_numpy(source.image.copy())[None])[0].cpu()
    assert source.latents is not None
    return source.latents[0]


def load_source(item: Item, sampler: LoadedModel, clips: TrueClips | None) -> Original:
    """The image of an item, and the true clip of a held-out one. Raises InputRejected.

    A held-out clip whose video is gone or has changed is stood in for by its cached latents, and the note says so.
    """
    _, _, height, width = sampler.exports.latent_shape
    if item["row"] is None:
        try:
            content = read_bytes(item["uri"])
        except OSError as error:
            raise InputRejected(f"cannot be read ({error})") from error
        return Original(open_image(content, height * VAE_DOWNSAMPLING, width * VAE_DOWNSAMPLING), None, None, "")
    assert clips is not None
    latents = clips.latents(item["row"])
    try:
        frames = clips.frames(item["row"])
    except DecodeFailure as failure:
        note = (
            f"the source video could not be read again ({failure.reason}), so the true clip is the VAE's reconstruction"
        )
        return Original(None, latents, None, note)
    return Original(frames[0], latents, frames, "")
