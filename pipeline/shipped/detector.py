"""A small 3D convolutional network that tells the synthetic motions apart: features and class logits of clips.

The demo and the tests use it in place of I3D and C3D, with which published results are measured. Distances in its
features are not comparable with those of other networks.
"""

import json
from typing import NamedTuple

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..models.files.paths import local_path

SIDE = 32  # pixels of its input's sides, for clips of any size
CHANNELS = (16, 24, 32)
NORM_GROUPS = 8
FEATURES = 16


class Detected(NamedTuple):
    """Output of the detector for B clips."""

    features: Tensor  # (B, FEATURES)
    logits: Tensor  # (B, classes)


class Detector(nn.Module):
    """Network from clips of at least 4 frames to features and logits of `classes` motions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, third = CHANNELS
        layers: list[nn.Module] = []
        for before, after, stride in ((3, first, (1, 2, 2)), (first, second, 2), (second, third, 2)):
            layers += [nn.Conv3d(before, after, 3, stride, 1), nn.GroupNorm(NORM_GROUPS, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers, nn.Conv3d(third, third, 3, 1, 1), nn.SiLU())
        self.feature = nn.Linear(third * 2 * 4 * 4, FEATURES)
        self.classify = nn.Linear(FEATURES, classes)

    def forward(self, clips: Tensor) -> Detected:
        """Detect the motions of clips (B, F, 3, H, W) in [-1, 1]."""
        x = F.interpolate(clips.flatten(0, 1), (SIDE, SIDE), mode="area").unflatten(0, clips.shape[:2])
        # pooling keeps coarse positions, which tell a move to the left from one to the right
        x = F.adaptive_avg_pool3d(self.convolutions(x.transpose(1, 2)), (2, 4, 4))
        features = self.feature(x.flatten(1))
        return Detected(features, self.classify(F.silu(features)))


def to_input(frames: Tensor) -> Tensor:
    """Convert uint8 (..., H, W, 3) to (..., 3, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def shrink(frames: Tensor) -> Tensor:
    """Shrink uint8 (B, F, H, W, 3) to uint8 (B, F, SIDE, SIDE, 3), the size at which the detector looks; rounded."""
    x = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    return F.interpolate(x, (SIDE, SIDE), mode="area").round().byte().permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])


def load_detector(path: str) -> tuple[Detector, list[str]]:
    """Load a detector and the names of its classes.

    `path` is shipped:detector or a folder that jobs/train_detector.py wrote. Raises UserError.
    """
    folder = local_path(path)
    try:
        if folder is None:
            raise FileNotFoundError(path)
        classes = json.loads((folder / "config.json").read_text())["classes"]
        module = Detector(len(classes))
        weights = load_file(folder / "model.safetensors")
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, KeyError, ValueError, TypeError, SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        remedy = "give shipped:detector, or a folder that jobs/train_detector.py wrote"
        raise UserError(f"evaluate.detector = {path}: no detector there ({said}); {remedy}") from error
    return module.eval(), classes
