"""Decode all clips of a small data set into memory, for the trainings of the shipped models."""

import logging

import torch

from ..data.decode.decoders import decode_clip
from ..data.decode.fetch import DecodeFailure
from ..data.plan.clips import plan_clips
from ..errors import UserError
from ..settings import DataSettings

log = logging.getLogger("clips")


def decode_split(data: DataSettings, split: str, every: int = 1) -> tuple[torch.Tensor, list[str]]:
    """Return every `every`-th frame of the clips of a split, uint8 (N, F, H, W, 3), and the clips' classes.

    Logs and skips clips that cannot be decoded. Raises UserError if none is left.
    """
    frames, labels = [], []
    for clip in plan_clips(data):
        if clip["split"] == split:
            try:
                frames.append(torch.from_numpy(decode_clip(clip, data)[0][::every].copy()))
                labels.append(clip["label"])
            except DecodeFailure as failure:
                log.warning("%s: %s", clip["video"], failure)
    if not frames:
        raise UserError(f"{data.path}: no {split} video could be read; give a folder of videos with --data.path")
    return torch.stack(frames), labels
