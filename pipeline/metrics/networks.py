"""Networks that measure clips, from local files: clips in, arrays out, a row for each clip.

detector  "features" (B, 16), "probabilities" (B, classes)   shipped:detector
i3d       "features" (B, 400)                                i3d_torchscript.pt of StyleGAN-V's evaluation
c3d       "probabilities" (B, 101)                           c3d_ucf101.pt of the same
videomae  "features" (B, D)                                  TorchScript of CD-FVD's VideoMAE
clip      "similarity", "consistency" (B, 1)                 CLIP folder of transformers, with its tokenizer
raft      "motion" (B, 1)                                    TorchScript of RAFT: frames (B, 3, H, W) and the next ones
                                                             -> flow (B, 2, H, W)
dreamsim  "conformity" (B, 1)                                TorchScript of DreamSim: two frames -> distances (B,)

A TorchScript file takes float32 in 0..255, clips as (B, 3, F, H, W), and does its own resizing and scaling. It runs
code: take it from those you trust.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F_

from ..errors import UserError
from ..models.checkpoints.weights_hash import weights_sha256
from ..models.files.paths import local_path
from ..models.image_encoder import DEVIATION, MEAN
from ..settings import EvaluateSettings
from ..shipped.detector import load_detector, to_input
from .motion import motion_score

MetricNetwork = Callable[[np.ndarray, list[str]], dict[str, np.ndarray]]  # clips uint8 (B, F, H, W, 3) and captions
Measure = Callable[[Tensor, list[str]], dict[str, Tensor]]  # the same with tensors on a device

WEIGHTS = {"detector": "model.safetensors", "clip": "*.safetensors"}  # in the folder; the others are files themselves
STILL_FRAMES = 4  # the fewest frames that the detector takes
RAFT_MULTIPLE = 8  # divides the sides of RAFT's pictures


def network_hashes(names: Iterable[str], settings: EvaluateSettings) -> dict[str, str]:
    """SHA-256 of the weights of each of `names` that the settings give. Raises UserError for a missing file."""
    return {
        name: weights_sha256(_weights_files(name, path))
        for name in names
        if (path := getattr(settings, name)) is not None
    }


def _weights_files(name: str, path: str) -> list[Path]:
    found = local_path(path)
    files = [] if found is None else sorted(found.glob(WEIGHTS[name])) if name in WEIGHTS else [found]
    if not files or not all(file.is_file() for file in files):
        expected = f"a folder with {WEIGHTS[name]}" if name in WEIGHTS else "a TorchScript file"
        raise UserError(f"evaluate.{name} = {path}: expected {expected} on this machine; give one, or null to skip it")
    return files


def load_network(name: str, settings: EvaluateSettings, device: str = "cpu") -> MetricNetwork:
    """Load the network `name`. Raises UserError."""
    path, where = getattr(settings, name), torch.device(device)
    if name == "detector":
        return _of_arrays(_detector(path, where), where)
    if name == "clip":
        return _of_arrays(_clip(path, where), where)
    return _of_arrays(partial(SCRIPTED[name], _script(name, path, where)), where)


def _of_arrays(measure: Measure, device: torch.device) -> MetricNetwork:
    @torch.inference_mode()
    def network(clips: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
        found = measure(torch.from_numpy(clips).to(device), captions)
        return {name: values.cpu().numpy() for name, values in found.items()}

    return network


def _detector(path: str, device: torch.device) -> Measure:
    module = load_detector(path)[0].to(device)

    def measure(clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
        found = module(to_input(clips))
        return {"features": found.features, "probabilities": found.logits.softmax(-1)}

    return measure


def _script(name: str, path: str, device: torch.device) -> Any:
    try:
        return torch.jit.load(str(local_path(path)), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"evaluate.{name} = {path}: no TorchScript file ({said}); give one, or null") from error


def channels_first(clips: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in 0..255."""
    return clips.permute(0, 4, 1, 2, 3).float()


def i3d(module: Any, clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """FVD's features. The file itself resizes to 224 x 224 and scales to [-1, 1], when asked to."""
    return {"features": module(channels_first(clips), rescale=True, resize=True, return_features=True).float()}


def videomae(module: Any, clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """CD-FVD's features (Ge et al. 2024)."""
    return {"features": module(channels_first(clips)).float()}


def c3d(module: Any, clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """Probabilities of UCF-101's classes, by a network that ends in a softmax. Raises UserError for another one."""
    found = module(channels_first(clips)).float()
    if float(found.min()) < 0 or float((found.sum(1) - 1).abs().max()) > 1e-2:
        raise UserError("evaluate.c3d: gives no probabilities; give a network with its softmax, or null")
    return {"probabilities": found}


def raft(module: Any, clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """CIL's motion score of each clip, by the flow from frame to frame; the last one of flows refined in turn."""
    scores = []
    for clip in clips.permute(0, 1, 4, 2, 3):
        height, width = clip.shape[2:]
        x = F_.pad(clip.float(), (0, -width % RAFT_MULTIPLE, 0, -height % RAFT_MULTIPLE), mode="replicate")
        flow = module(x[:-1], x[1:])
        flow = flow if isinstance(flow, Tensor) else flow[-1]
        scores.append(motion_score(flow[..., :height, :width].permute(0, 2, 3, 1).float().cpu().numpy()))
    return {"motion": torch.tensor(scores, dtype=torch.float64)[:, None]}


def dreamsim(module: Any, clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
    """PIC (DynamiCrafter): 1 less DreamSim's distance of each frame to the first, averaged over frames."""
    pictures = clips.permute(0, 1, 4, 2, 3).float()
    near = [float((1 - module(x[:1].expand_as(x), x)).mean()) for x in pictures]
    return {"conformity": torch.tensor(near, dtype=torch.float64)[:, None]}


SCRIPTED = {"i3d": i3d, "c3d": c3d, "videomae": videomae, "raft": raft, "dreamsim": dreamsim}


def _clip(path: str, device: torch.device) -> Measure:
    """CLIPSIM (Wu et al. 2021): the mean over frames of the cosine between a frame's and the caption's embedding."""
    from transformers import AutoTokenizer, CLIPModel

    folder = Path(str(local_path(path)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(f"evaluate.clip = {path}: {said}; give a CLIP folder of transformers, or null") from error
    module = torch.nn.Module.to(model, device).eval()  # not model.to(), whose types transformers wraps
    mean, deviation = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, DEVIATION))
    config: Any = model.config
    side, length = config.vision_config.image_size, config.text_config.max_position_embeddings

    def measure(clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        text = module.text_projection(module.text_model(**tokens.to(device)).pooler_output)
        pixels = (clip_pixels(clips.flatten(0, 1).permute(0, 3, 1, 2), side) - mean) / deviation
        image = module.visual_projection(module.vision_model(pixel_values=pixels).pooler_output)
        image = image.unflatten(0, clips.shape[:2])
        near = F_.cosine_similarity(image, text[:, None], dim=-1).mean(1, keepdim=True)
        return {"similarity": near, "consistency": frame_consistency(image)}

    return measure


def frame_consistency(embeddings: Tensor) -> Tensor:
    """Mean cosine of the embeddings (B, F, D) of neighbouring frames, (B, 1); with CLIP's embeddings, BIVDiff's metric.

    A single frame is consistent: 1.
    """
    if embeddings.shape[1] == 1:
        return torch.ones(len(embeddings), 1)
    return F_.cosine_similarity(embeddings[:, :-1], embeddings[:, 1:], dim=-1).mean(1, keepdim=True)


def detector_consistency(path: str, device: str = "cpu") -> MetricNetwork:
    """ "consistency" (B, 1) by a detector of jobs/train_detector.py, which sees each frame as a clip that stands still.

    It serves synthetic videos, where there is no CLIP, and compares with no other metric.
    """
    module = load_detector(path)[0].to(device)

    def measure(clips: Tensor, captions: list[str]) -> dict[str, Tensor]:
        still = to_input(clips.flatten(0, 1)[:, None]).expand(-1, STILL_FRAMES, -1, -1, -1)
        return {"consistency": frame_consistency(module(still).features.unflatten(0, clips.shape[:2]))}

    return _of_arrays(measure, torch.device(device))


def clip_pixels(frames: Tensor, side: int) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 3, side, side) in 0..1: short side resized (bicubic), centre cropped, as CLIP's own."""
    height, width = frames.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    x = F_.interpolate(frames.float(), size, mode="bicubic", antialias=True).clamp(0, 255) / 255
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return x[..., top : top + side, left : left + side]
