"""The bridge's end point z_T: the image replicated, or the neural prior (section 4.3, eq. 8)."""

from torch import Tensor, nn

from .latte import Latte


def replicate(image_latent: Tensor, frames: int) -> Tensor:
    """Repeat image_latent (B, C, h, w) as every one of `frames` frames, (B, F, C, h, w), in a view: the plain prior."""
    return image_latent.unsqueeze(1).expand(-1, frames, -1, -1, -1)


class NeuralPrior(nn.Module):
    """Eq. 8: a Latte without time embedding that regresses the clip from its first frame and its class.

    The backbone's frames are the clip's. Published checkpoints call it `nwarp_model` (see checkpoints/published.py).
    """

    def __init__(self, backbone: Latte) -> None:
        super().__init__()
        if backbone.t_embedder is not None:
            raise ValueError("the neural prior is not conditioned on time: build its Latte with time_embedding=False")
        self.backbone = backbone

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from the seed alone."""
        self.backbone.initialise(seed)

    def forward(self, image_latent: Tensor, y: Tensor) -> Tensor:
        """Predict the prior (B, F, C, h, w) from image_latent (B, C, h, w) and labels y (B,)."""
        return self.backbone(replicate(image_latent, self.backbone.num_frames), None, y)
