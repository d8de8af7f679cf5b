"""Image tokens of the first frame, for models that attend over them: VAE decoder, then CLIP image encoder, both frozen.

A ViT-H's tokens are larger than a clip's latent, so the cache does not hold them. Each batch makes them from its image
latents, at the cost of decoding one frame and one pass of the encoder. Training and sampling therefore see the same
image: the VAE's reconstruction of the true one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F_

from ..errors import UserError
from ..settings import VideoModelSettings
from .checkpoints.published import load_published
from .checkpoints.weights import WeightsError
from .files.open_clip import image_model
from .files.paths import hub_folder, local_path
from .vae import Vae

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

KEY = "model.unet3d.image_encoder"
# mean and deviation of the pixels that every CLIP was trained on, in 0..1
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """Turn scaled image latents into tokens of the last layer, class token first, before the final norm."""

    def __init__(self, vae: Vae, clip: CLIPVisionModel) -> None:
        self.vae, self.clip = vae, clip
        mean, deviation = (torch.tensor(values, device=clip.device).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        self.mean, self.deviation = mean, deviation

    @torch.no_grad()
    def __call__(self, image_latent: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return tokens (B, L, D), float32, of scaled image latents (B, C, h, w).

        `shown` (B,) replaces images by grey where it is False, which is how DynamiCrafter drops them for guidance.
        """
        pixels = self.vae.decode_image(image_latent)
        if shown is not None:
            pixels = pixels * shown.to(pixels.device)[:, None, None, None]
        side: int = self.clip.config.image_size  # type: ignore[assignment]
        resized = F_.interpolate(pixels, (side, side), mode="bicubic", align_corners=True, antialias=True)
        normed = ((resized + 1) / 2 - self.mean) / self.deviation
        tokens: Tensor = self.clip(pixel_values=normed.to(self.clip.dtype)).last_hidden_state
        return tokens.float()


def load_image_encoder(
    model: VideoModelSettings, vae: Vae, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> ImageEncoder:
    """Load the encoder that model.unet3d.image_encoder names: a DynamiCrafter checkpoint, or transformers' CLIP.

    transformers' CLIP may be a folder or a hub name. Raises UserError, also if the width of the tokens differs from
    model.unet3d.image_width.
    """
    assert model.unet3d is not None and model.unet3d.image_encoder is not None
    path, width = model.unet3d.image_encoder, model.unet3d.image_width
    local = local_path(path)
    if local is not None and local.is_file():
        try:
            clip = image_model(load_published(local), f"{KEY} = {path}")
        except WeightsError as error:
            raise UserError(f"{KEY} = {path}: {error}") from error
    else:
        clip = _from_folder(path, local or hub_folder(path, ["config.json", "model*.safetensors"]))
    if clip.config.hidden_size != width:
        raise UserError(
            f"{KEY} = {path}: its tokens are {clip.config.hidden_size} wide, but model.unet3d.image_width = {width}; "
            f"set {clip.config.hidden_size}"
        )
    # not clip.to(), which transformers wraps without types
    return ImageEncoder(vae, torch.nn.Module.to(clip, torch.device(device), dtype))


def _from_folder(path: str, folder: Path | None) -> CLIPVisionModel:
    from transformers import CLIPVisionModel

    remedy = "give a DynamiCrafter checkpoint, or a CLIP folder or hub name of transformers, or null"
    if folder is None:
        raise UserError(f"{KEY} = {path}: no such file or folder, nor on the hub; {remedy}")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise UserError(f"{KEY} = {path}: holds a model of type {kind}, expected clip; {remedy}")
        model = CLIPVisionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{KEY} = {path}: {str(error).strip().splitlines()[0]}; {remedy}") from error
    return model.eval().requires_grad_(False)
