"""ITEMS -> RECORDS AND FILES: what a sampling actor makes of one batch. No Ray here.

Files of an item, in RUN/samples: KEY.image.png, KEY.reconstruction.png (the image after the VAE's encoder and decoder),
KEY.generated.mp4, with sample.gif KEY.generated.gif too, KEY.prior.mp4, KEY.true.mp4 where the true clip is known, and
KEY.json with the record.
"""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.cache.info import CacheSpec
from ..data.cache.shards import read_latent
from ..data.decode.fetch import DecodeFailure
from ..data.decode.stage import isolated_decoder
from ..media import encode_gif, encode_mp4, encode_png
from ..models.prior import replicate
from ..schema import ManifestRow
from ..settings import VAE_DOWNSAMPLING, DataSettings
from ..storage.files import read_bytes
from .generate import LoadedModel, decode_latents, encode_images, generate
from .items import BatchResult, Files, InputRejected, Item, Rejection, open_image
from .measures import frame_difference, latent_error, motion_ratio, psnr

# settings of `data` that decide the frames of a clip, besides the decoder
GEOMETRY = {"frames", "stride", "window", "clip_starts", "clip_seed", "short_video", "height", "width"}


class TrueClips(NamedTuple):
    """Held-out clips of a cache: latents from its shards, frames from the source videos."""

    path: str
    spec: CacheSpec
    data: DataSettings  # of decoding; all that decides a clip is taken from the spec

    def latents(self, row: ManifestRow) -> Tensor:
        """Return scaled posterior means (F, C, h, w) float32."""
        return torch.from_numpy(read_latent(self.path, row)[0].astype(np.float32)) * self.spec.scaling_factor

    def frames(self, row: ManifestRow) -> np.ndarray:
        """Decode the clip from its video again, uint8 (F, H, W, 3). Raises DecodeFailure."""
        as_cached = {name: self.spec.settings[f"data.{name}"] for name in GEOMETRY} | {"decoder": row["decoder"]}
        data = DataSettings.model_validate(self.data.model_dump() | as_cached)
        frames, span = isolated_decoder.decode(row, data)
        if span["source_hash"] != row["source_hash"] or span["start"] != row["start"]:
            raise DecodeFailure("changed", f"{row['uri']} is not the video that was cached")
        return frames


class Original(NamedTuple):
    """The image of an item, and the true clip of a held-out one."""

    image: np.ndarray | None  # uint8 (H, W, 3); None: the source video is gone, `latents` stand in
    image_latent: Tensor  # (C, h, w) float32, scaled, on the CPU
    latents: Tensor | None = None  # (F, C, h, w) float32, scaled posterior means of the true clip
    true: np.ndarray | None = None  # uint8 (F, H, W, 3), from the source video
    note: str = ""  # what to know about it


def load_original(loaded: LoadedModel, clips: TrueClips | None, item: Item) -> Original:
    """Load the image of an item, and the true clip of a held-out one. Raises InputRejected.

    Each image is encoded alone, so that the rest of a batch does not matter. If the video of a held-out clip is gone or
    has changed, its cached latents stand in, and the note says so.
    """
    if item["row"] is None:
        _, _, height, width = loaded.exports.latent_shape
        try:
            content = read_bytes(item["uri"])
        except OSError as error:
            raise InputRejected(f"cannot be read ({error})") from error
        image = open_image(content, height * VAE_DOWNSAMPLING, width * VAE_DOWNSAMPLING)
        return Original(image, encode_images(loaded, image[None])[0].cpu())
    assert clips is not None
    latents = clips.latents(item["row"])
    try:
        frames = clips.frames(item["row"])
    except DecodeFailure as failure:
        problem = f"the source video could not be read again ({failure.reason})"
        return Original(None, latents[0], latents, None, f"{problem}, so the true clip is the VAE's reconstruction")
    return Original(frames[0], encode_images(loaded, frames[:1])[0].cpu(), latents, frames)


def sample_batch(loaded: LoadedModel, clips: TrueClips | None, seed: int, items: list[Item]) -> BatchResult:
    """Generate the clips of the items; `clips` has the true ones of held-out items."""
    started = time.monotonic()
    good: list[tuple[Item, Original]] = []
    rejected: list[Rejection] = []
    for item in items:
        try:
            good.append((item, load_original(loaded, clips, item)))
        except InputRejected as problem:
            rejected.append(Rejection(item["name"], str(problem)))
    if not good:
        return [], rejected
    generated, priors = generate(
        loaded,
        torch.stack([original.image_latent for _, original in good]),
        [item["label"] for item, _ in good],
        [item["key"] for item, _ in good],
        seed,
        [item["caption"] or item["label"] for item, _ in good],
        [float(item["row"]["stride"] if item["row"] else loaded.how.stride) for item, _ in good],
    )
    made: list[tuple[dict[str, Any], Files]] = []
    for (item, original), clip, prior in zip(good, generated, priors, strict=True):
        metrics, files = finish(loaded, original, clip, prior)
        record = {"key": item["key"], "name": item["name"], "label": item["label"], "caption": item["caption"]}
        made.append((record | {"metrics": metrics, "true": "true.mp4" in files, "note": original.note}, files))
    seconds = (time.monotonic() - started) / len(good)
    return [(record | {"seconds": seconds}, files) for record, files in made], rejected


def finish(
    loaded: LoadedModel, original: Original, clip: Tensor, prior: Tensor
) -> tuple[dict[str, float | None], Files]:
    """Measure and encode one item's clip and prior, latents (F, C, h, w)."""
    fps = loaded.how.fps
    generated, prior_frames = decode_latents(loaded, torch.stack([clip, prior])).numpy()
    reconstruction = decode_latents(loaded, original.image_latent[None, None])[0, 0].numpy()
    motion = frame_difference(generated)
    metrics: dict[str, float | None] = {
        "psnr_first_frame": psnr(generated[0], reconstruction),
        "psnr_vae": None if original.image is None else psnr(reconstruction, original.image),
        "motion_generated": motion,
    }
    files = {
        "image.png": encode_png(reconstruction if original.image is None else original.image),
        "reconstruction.png": encode_png(reconstruction),
        "generated.mp4": encode_mp4(generated, fps),
        "prior.mp4": encode_mp4(prior_frames, fps),
    }
    if loaded.how.gif:
        files["generated.gif"] = encode_gif(generated, fps)
    if original.latents is not None:
        reconstructed = decode_latents(loaded, original.latents[None])[0].numpy()
        true = reconstructed if original.true is None else original.true
        still = replicate(original.image_latent[None], len(original.latents))[0]
        metrics |= {
            "motion_true": frame_difference(true),
            "motion_true_vae": frame_difference(reconstructed),
            "motion_ratio": motion_ratio(motion, frame_difference(true)),
            "motion_ratio_vae": motion_ratio(motion, frame_difference(reconstructed)),
            "prior_latent_error": latent_error(prior.cpu(), original.latents),
            "replicated_latent_error": latent_error(still, original.latents),
            "generated_latent_error": latent_error(clip.cpu(), original.latents),
        }
        files["true.mp4"] = encode_mp4(true, fps)
    return metrics, files
