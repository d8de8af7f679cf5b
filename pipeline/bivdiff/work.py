"""A ROW OF THE LIST -> RECORDS AND FILES: what an actor makes of one video. No Ray here.

Files of a clip, in RUN/bivdiff: KEY.source.mp4, KEY.control.mp4, KEY.mask.mp4 as far as the task has them,
KEY.frames.mp4 (the image model's frames, where they are not the clip), KEY.generated.mp4, and KEY.json with the record.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..media import encode_mp4
from ..metrics.networks import MetricNetwork
from ..sampling.generate import noise_of_keys
from ..sampling.items import BatchResult, InputRejected, Rejection
from ..settings import VAE_DOWNSAMPLING, DataSettings
from ..settings.bivdiff import JOINT, BivdiffSettings
from .diffusion import LatentDiffusion, Prompt
from .frames import Sources, read_sources
from .items import BivdiffClip
from .mixed import invert_both, mix
from .models import Models
from .tasks import Partner, make_frames

# The video model's share of the prediction in step k of n, in ablations in which both models share one trajectory: it
# makes the second half of the steps, every other one, or half of each.
VIDEO_SHARE = {
    "sequential": lambda k, n: float(2 * k >= n),
    "alternate": lambda k, n: float(k % 2),
    "fuse": lambda k, n: 0.5,
}


class Made(NamedTuple):
    """The clips of a row, uint8 (F, H, W, 3)."""

    frames: np.ndarray | None  # by the image model; None without them, or where they are the clip
    clips: list[np.ndarray]  # for each alpha


def make_clips(
    models: Models,
    networks: dict[str, MetricNetwork],
    bivdiff: BivdiffSettings,
    data: DataSettings,
    seed: int,
    clips: list[BivdiffClip],
) -> BatchResult:
    """Make and measure the clips of one row of the list, which differ in alpha."""
    started = time.monotonic()
    sources = Sources(None, None, None)
    try:
        if bivdiff.framework != "vdm_only" or (models.video is not None and models.video.shown_image):
            sources = read_sources(clips[0], bivdiff, data)
        made = synthesise(models, clips, sources, bivdiff, data, seed)
    except InputRejected as problem:
        return [], [Rejection(clips[0]["name"], str(problem))]
    seconds = (time.monotonic() - started) / len(clips)
    mask = None if sources.mask is None else sources.mask[..., None].repeat(3, -1)
    shared = {"source": sources.video, "control": sources.control, "mask": mask, "frames": made.frames}
    files = {f"{name}.mp4": encode_mp4(frames, bivdiff.fps) for name, frames in shared.items() if frames is not None}
    results = []
    for clip, frames in zip(clips, made.clips, strict=True):
        record: dict[str, Any] = {"key": clip["key"], "name": clip["name"], "label": "", "caption": clip["prompt"]}
        record |= {"alpha": clip["alpha"], "seconds": seconds}
        record["metrics"] = measure(networks, frames, made.frames, clip["video_prompt"])
        results.append((record, files | {"generated.mp4": encode_mp4(frames, bivdiff.fps)}))
    return results, []


def synthesise(
    models: Models, clips: list[BivdiffClip], sources: Sources, bivdiff: BivdiffSettings, data: DataSettings, seed: int
) -> Made:
    """BIVDiff, or one of its ablations: frames (eq. 1), Mixed Inversion (eq. 2 to 4), smoothing (eq. 5)."""
    clip, (pipe, first, image, video), steps = clips[0], models, bivdiff.steps
    prompt = Prompt(clip["video_prompt"], clip["negative_prompt"], bivdiff.guidance)
    shape = data.frames, first.channels, data.height // VAE_DOWNSAMPLING, data.width // VAE_DOWNSAMPLING
    noise = noise_of_keys(seed, [clip["source"]], shape, first.vae.device)(0)
    if pipe is None:  # vdm_only
        shown = first.encode(sources.video) if first.shown_image else noise
        return Made(None, [first.decode(first.sample(noise, prompt, steps, shown))])
    if bivdiff.task == "prompt_to_prompt":  # start at the noise from which the network that edits makes the source
        noise = first.invert(first.encode(sources.video), steps)
    partner = None
    if video is not None and bivdiff.framework in JOINT:
        partner = partner_of(video, prompt, sources, bivdiff)
    frames = make_frames(pipe, clip, sources, noise[0], bivdiff, partner)
    if video is None or bivdiff.framework != "bivdiff":
        return Made(None, [frames])
    z0, alphas = video.encode(frames), [clip["alpha"] for clip in clips]
    inverted = invert_both(image, video, z0, alphas, steps)
    smoothed = (video.sample(mix(inverted, alpha), prompt, steps, z0) for alpha in alphas)
    return Made(frames, [video.decode(latents) for latents in smoothed])


def partner_of(video: LatentDiffusion, prompt: Prompt, sources: Sources, bivdiff: BivdiffSettings) -> Partner:
    """The video model's part in every step of the image model's pipeline."""
    shown = video.encode(sources.video) if video.shown_image else torch.empty(1, 1)
    denoise, share = video.conditioned(prompt, shown[:, 0]), VIDEO_SHARE[bivdiff.framework]

    def partner(step: int, timestep: Any, z: Tensor, prediction: Tensor) -> Tensor:
        """Mix the video model's prediction into the image model's (N, C, h, w)."""
        part = share(step, bivdiff.steps)
        if not part:
            return prediction
        t = torch.as_tensor(timestep, device=z.device, dtype=torch.float32).reshape(1)
        return (1 - part) * prediction + part * denoise(z[None].float(), t)[0]

    return partner


def measure(
    networks: dict[str, MetricNetwork], clip: np.ndarray, frames: np.ndarray | None, prompt: str
) -> dict[str, float | None]:
    """Frame consistency and textual alignment of a clip, and the consistency of the image model's frames before it."""
    found: dict[str, float | None] = {}
    for name, network in networks.items():
        measured = network(clip[None], [prompt])
        suffix = "" if name == "clip" else f"_{name}"
        found[f"frame_consistency{suffix}"] = float(measured["consistency"][0, 0])
        if "similarity" in measured:
            found["textual_alignment"] = float(measured["similarity"][0, 0])
        if frames is not None:
            before = network(frames[None], [prompt])
            found[f"frame_consistency_of_frames{suffix}"] = float(before["consistency"][0, 0])
    return found
