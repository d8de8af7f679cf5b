"""VideoCrafter1 and DynamiCrafter: U-Net and resampler in one module, under the names of published checkpoints.

A checkpoint of either holds a whole latent diffusion model: `model.diffusion_model.*` (the U-Net),
`image_proj_model.*` (DynamiCrafter's resampler), `first_stage_model.*` (the VAE, see files/vae.py),
`cond_stage_model.*` and `embedder.*` (open_clip's text and image encoders, see files/open_clip.py).
"""

from torch import Tensor, nn

from .resampler import Resampler
from .unet3d import UNet3D


class VideoCrafter(nn.Module):
    """The trained part of an image-to-video model: the U-Net, and the resampler if it attends over image tokens."""

    def __init__(self, unet: UNet3D, resampler: Resampler | None) -> None:
        super().__init__()
        if unet.image_tokens != (resampler is not None):
            raise ValueError("a U-Net that attends over image tokens needs a resampler, and no other does")
        self.model = nn.ModuleDict({"diffusion_model": unet})
        self.image_proj_model = resampler

    @property
    def unet(self) -> UNet3D:
        """Return the U-Net."""
        return self.model["diffusion_model"]  # type: ignore[return-value]

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from the seed alone."""
        self.unet.initialise(seed)
        if self.image_proj_model is not None:
            self.image_proj_model.initialise(seed)

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, stride: Tensor, image_features: Tensor | None = None
    ) -> Tensor:
        """Predict as UNet3D does, from image_features (B, L, D) of the image encoder, not tokens of each frame."""
        if self.image_proj_model is not None and image_features is not None:
            image_features = self.image_proj_model(image_features)
        return self.unet(x, t, text, stride, image_features)
