"""A ROW OF THE LIST -> CLIPS: what an actor does with one video; no Ray here.

Files of a clip, in RUN/bivdiff: KEY.source.mp4, KEY.control.mp4, KEY.mask.mp4 as far as the task has them, KEY.frames.mp4 (the
image model's frames, where they are not the clip), KEY.generated.mp4, and at last KEY.json, which makes it done.
"""

from __future__ import annotations

import atexit
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.decode.child import IsolatedDecoder
from ..media import encode_mp4
from ..metrics.networks import MetricNetwork
from ..sampling.generate import noise_of_keys
from ..sampling.items import InputRejected, Rejection
from ..settings import VAE_DOWNSAMPLING, DataSettings, Settings
from ..settings.bivdiff import JOINT, BivdiffSettings
from ..storage.files import write_bytes, write_json
from .adapters import image_diffusion, vae_of
from .diffusion import Asked
from .frames import Sources, read_sources
from .items import BivdiffClip
from .mixed import invert_both, mix
from .models import Models
from .tasks import Partner, make_frames

_decoder = IsolatedDecoder()  # one child process for each actor, started when a video is read
atexit.register(_decoder.close)

# Ablations in which both models share one trajectory: the video model's share of the prediction in step k of n. It makes the
# second half of the steps, every other one, or half of each.
VIDEO_SHARE = {
    "sequential": lambda k, n: float(2 * k >= n),
    "alternate": lambda k, n: float(k % 2),
    "fuse": lambda k, n: 0.5,
}


class Made(NamedTuple):
    frames: np.ndarray | None  # uint8 (F, H, W, 3) by the image model; None: there are none, or they are the clip
    clips: list[np.ndarray]  # uint8 (F, H, W, 3), for each alpha


def make_clips(
    models: Models,
    networks: dict[str, MetricNetwork],
    clips: list[BivdiffClip],
    settings: Settings,
    fingerprints: list[str],
    folder: str,
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Make the clips of one row of the list, which differ in alpha, and write their files into `folder`.

    Their records, as in KEY.json; or, for a row that cannot be made, the reason.
    """
    started = time.monotonic()
    bivdiff = settings.bivdiff
    try:
        sources = Sources(None, None, None)
        if bivdiff.framework != "vdm_only" or (models.video is not None and models.video.shown_image):
            sources = read_sources(clips[0], bivdiff, settings.data, _decoder)
        made = synthesise(models, clips, sources, bivdiff, settings.data, settings.run.seed)
    except InputRejected as problem:
        return [], [Rejection(clips[0]["name"], str(problem))]
    seconds = (time.monotonic() - started) / len(clips)
    records = []
    for clip, frames, fingerprint in zip(clips, made.clips, fingerprints, strict=True):
        written = {
            "source": sources.video,
            "control": sources.control,
            "mask": mask_frames(sources),
            "frames": made.frames,
        }
        for name, content in (written | {"generated": frames}).items():
            if content is not None:
                write_bytes(f"{folder}/{clip['key']}.{name}.mp4", encode_mp4(content, bivdiff.fps))
        record: dict[str, Any] = {"key": clip["key"], "name": clip["name"], "label": "", "caption": clip["prompt"]}
        record |= {"alpha": clip["alpha"], "fingerprint": fingerprint, "seconds": seconds}
        record["metrics"] = measure(networks, frames, made.frames, clip["video_prompt"])
        write_json(f"{folder}/{clip['key']}.json", record)
        records.append(record)
    return records, []


def synthesise(
    models: Models, clips: list[BivdiffClip], sources: Sources, bivdiff: BivdiffSettings, data: DataSettings, seed: int
) -> Made:
    """BIVDiff, or one of its ablations: frames (eq. 1), Mixed Inversion (eq. 2 to 4), smoothing (eq. 5)."""
    clip, steps = clips[0], bivdiff.steps
    asked = Asked(clip["video_prompt"], clip["negative_prompt"], bivdiff.guidance)
    noise = start_noise(models, clip, data, seed)
    if models.pipe is None:  # vdm_only
        assert models.video is not None
        shown = encode(models, sources.video) if models.video.shown_image else noise
        return Made(None, [decode(models, models.video.sample(noise, asked, steps, shown))])
    if bivdiff.task == "prompt_to_prompt":
        noise = inverted_source(models, sources, steps)
    partner = None
    if bivdiff.framework in JOINT:
        partner = partner_of(models, asked, sources, bivdiff)
    frames = make_frames(models.pipe, clip, sources, noise[0], bivdiff, partner)
    if bivdiff.framework != "bivdiff":
        return Made(None, [frames])
    assert models.video is not None
    z0 = encode(models, frames)
    inverted = invert_both(models.image, models.video, z0, [clip["alpha"] for clip in clips], steps)
    return Made(
        frames, [decode(models, models.video.sample(mix(inverted, clip["alpha"]), asked, steps, z0)) for clip in clips]
    )


def start_noise(models: Models, clip: BivdiffClip, data: DataSettings, seed: int) -> Tensor:
    """(1, F, C, h, w), of the row and the seed alone."""
    size = data.height // VAE_DOWNSAMPLING, data.width // VAE_DOWNSAMPLING
    return noise_of_keys(seed, [clip["source"]], torch.Size((data.frames, models.channels, *size)), models.device)(0)


def inverted_source(models: Models, sources: Sources, steps: int) -> Tensor:
    """(1, F, C, h, w): the noise from which the image model itself makes the source's frames."""
    assert models.pipe is not None and sources.video is not None
    mean, _ = vae_of(models.pipe).encode_clips(torch.from_numpy(sources.video.copy())[None])
    image = image_diffusion(models.pipe, "bivdiff.image_model")  # the network that then edits
    return image.invert(mean * image.scaling_factor, steps)


def partner_of(models: Models, asked: Asked, sources: Sources, bivdiff: BivdiffSettings) -> Partner:
    """The video model's part in every step of the image model's pipeline."""
    video = models.video
    assert video is not None
    shown = encode(models, sources.video) if video.shown_image else torch.empty(1, 1)
    denoise = video.conditioned(asked, shown[:, 0])
    share = VIDEO_SHARE[bivdiff.framework]

    def partner(step: int, timestep: Any, z: Tensor, prediction: Tensor) -> Tensor:
        part = share(step, bivdiff.steps)
        if not part:
            return prediction
        t = torch.as_tensor(timestep, device=z.device, dtype=torch.float32).reshape(1)
        return (1 - part) * prediction + part * denoise(z[None].float(), t)[0]

    return partner


def encode(models: Models, frames: np.ndarray | None) -> Tensor:
    """Scaled latents (1, F, C, h, w) float32 of uint8 (F, H, W, 3): posterior means. Raises InputRejected without frames."""
    if frames is None:
        raise InputRejected("names no video, whose first frame bivdiff.video_model is to be shown")
    assert models.vae is not None
    mean, _ = models.vae.encode_clips(torch.from_numpy(frames.copy())[None])
    return mean * models.vae.scaling_factor


def decode(models: Models, latents: Tensor) -> np.ndarray:
    """uint8 (F, H, W, 3) of scaled latents (1, F, C, h, w), frame by frame."""
    assert models.vae is not None
    return models.vae.decode_clips(latents, 1)[0].numpy()


def mask_frames(sources: Sources) -> np.ndarray | None:
    return None if sources.mask is None else sources.mask[..., None].repeat(3, -1)


def measure(
    networks: dict[str, MetricNetwork], clip: np.ndarray, frames: np.ndarray | None, prompt: str
) -> dict[str, float | None]:
    """Frame consistency and textual alignment of a clip, and the consistency of the image model's frames before it."""
    found: dict[str, float | None] = {}
    for name, network in networks.items():
        said = network(clip[None], [prompt])
        suffix = "" if name == "clip" else f"_{name}"
        found[f"frame_consistency{suffix}"] = float(said["consistency"][0, 0])
        if "similarity" in said:
            found["textual_alignment"] = float(said["similarity"][0, 0])
        if frames is not None:
            before = network(frames[None], [prompt])
            found[f"frame_consistency_of_frames{suffix}"] = float(before["consistency"][0, 0])
    return found
