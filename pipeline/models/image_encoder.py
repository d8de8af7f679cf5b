"""Image tokens of the first frame, for models that attend over them: VAE decoder, then CLIP image encoder, both frozen.

A ViT-H's tokens are larger than a clip's latent, so the cache does not hold them. Each batch makes them from its image
latents, at the cost of decoding one frame and one pass of the encoder. Training and sampling therefore see the same
image: the VAE's reconstruction of the true one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F_

from ..errors import UserError
from ..settings import VideoModelSettings
from .checkpoints.published import load_published
from .files.open_clip import image_model
from .files.paths import CONFIG, hub_folder, local_path, model_config, naming
from .vae import Vae

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

KEY = "model.unet3d.image_encoder"
# mean and deviation of the pixels that every CLIP was trained on, in 0..1
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """Turn scaled image latents into tokens of the last layer, class token first, before the final norm."""

    def __init__(self, vae: Vae, clip: "CLIPVisionModel") -> None:
        self.vae, self.clip = vae, clip
        self.mean, self.deviation = torch.tensor((MEAN, DEVIATION), device=clip.device).view(2, 1, 3, 1, 1)

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
        return self.clip(pixel_values=normed.to(self.clip.dtype)).last_hidden_state.float()


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
    remedy = "give a DynamiCrafter checkpoint, or a CLIP folder or hub name of transformers, or null"
    with naming(KEY, path, "CLIP image encoder", remedy):
        if local is not None and local.is_file():
            clip = image_model(load_published(local), str(local))
        else:
            clip = _from_folder(local or hub_folder(path, [CONFIG, "model*.safetensors"]))
    if clip.config.hidden_size != width:
        raise UserError(
            f"{KEY} = {path}: its tokens are {clip.config.hidden_size} wide, but model.unet3d.image_width = {width}; "
            f"set {clip.config.hidden_size}"
        )
    # not clip.to(), which transformers wraps without types
    return ImageEncoder(vae, torch.nn.Module.to(clip, torch.device(device), dtype))


def _from_folder(folder: Path | None) -> "CLIPVisionModel":
    from transformers import CLIPVisionModel

    if folder is None:
        raise ValueError("no such file or folder, nor on the hub")
    model_config(folder / CONFIG, "model_type", ("clip", "clip_vision_model"))
    model = CLIPVisionModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    return model.eval().requires_grad_(False)
