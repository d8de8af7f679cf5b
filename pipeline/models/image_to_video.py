"""How a Latte is shown the image: as an extra first frame, and the prior beside the latent."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.latte import Latte

ImageCondition = Literal["frame", "none"]


class ImageToVideo(nn.Module):
    """A backbone and its conditions: the network of a bridge, of its diffusion counterpart, of the teacher.

    image_condition "frame" puts the image latent before the first frame and drops that frame's output;
    "none" is the class-to-video diffusion model that a bridge is tuned from. prior_condition concatenates
    the prior on the channels; the image frame then carries the image latent twice. Of a backbone with
    learned sigma only the mean is given. No other state than the backbone's.
    """

    def __init__(
        self, backbone: Latte, image_condition: ImageCondition = "frame", prior_condition: bool = False
    ) -> None:
        super().__init__()
        if image_condition not in ("frame", "none"):
            raise ValueError(f"image_condition {image_condition!r} is not known; choose frame or none")
        if prior_condition and image_condition == "none":
            raise ValueError("prior_condition needs the image beside it: use image_condition frame")
        self.backbone = backbone
        self.image_condition = image_condition
        self.prior_condition = prior_condition

    @property
    def num_frames(self) -> int:
        """Frames of the clip: the backbone's input frames, less the image's."""
        return self.backbone.num_frames - (self.image_condition == "frame")

    @property
    def null_class(self) -> int:
        """The label of classifier-free guidance."""
        return self.backbone.null_class

    def forward(
        self, z: Tensor, t: Tensor, y: Tensor, image_latent: Tensor | None = None, prior: Tensor | None = None
    ) -> Tensor:
        """Prediction for z, both (B, F, C, h, w), at t (B,) on the scale 0..999, with labels y (B,) int64.

        image_latent (B, C, h, w) and prior (B, F, C, h, w) are given exactly where the model is conditioned
        on them; anything else raises ValueError.
        """
        self._check("image_latent", image_latent, self.image_condition == "frame")
        self._check("prior", prior, self.prior_condition)
        channels = z.shape[2]
        x = z if prior is None else torch.cat([z, prior.to(z.dtype)], dim=2)
        if image_latent is not None:
            image = image_latent.to(z.dtype).repeat(1, 1 + self.prior_condition, 1, 1)
            x = torch.cat([image[:, None], x], dim=1)
        out: Tensor = self.backbone(x, t, y)
        return out[:, -z.shape[1] :, :channels]

    def _check(self, name: str, value: Tensor | None, wanted: bool) -> None:
        if (value is not None) != wanted:
            raise ValueError(
                f"{name} is {'missing' if wanted else 'given'}, but this model was built with "
                f"image_condition={self.image_condition} and prior_condition={self.prior_condition}"
            )
