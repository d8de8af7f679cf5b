"""Give every backbone its image and other conditions by one call.

A network answers `network(z, t, y, **conditions)`; `conditions` names the inputs besides latent, timestep and class:

    image_latent    (B, C, h, w)        the first frame
    prior           (B, F, C, h, w)     the neural prior's output
    text            (B, tokens, width)  the caption's embedding
    stride          (B,)                source frames from one frame of the clip to the next
    image_features  (B, L, D)           tokens of the image encoder
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .latte import Latte
from .videocrafter import VideoCrafter

if TYPE_CHECKING:
    from diffusers import CogVideoXTransformer3DModel


class ConditionedBackbone(nn.Module):
    """A backbone and the names of its conditions. Its state is the backbone's alone."""

    backbone: Any
    conditions: tuple[str, ...]

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from the seed alone."""
        self.backbone.initialise(seed)


class ImageToVideo(ConditionedBackbone):
    """A Latte and its conditions: the network of a bridge, of its diffusion counterpart, of the teacher.

    image_condition "frame" puts the image latent before the first frame and drops that frame's output;
    "none" is the class-to-video diffusion model that a bridge is tuned from. prior_condition concatenates
    the prior on the channels; the image frame then carries the image latent twice. A backbone with
    learned sigma returns its mean only.
    """

    backbone: Latte

    def __init__(
        self, backbone: Latte, image_condition: Literal["frame", "none"] = "frame", prior_condition: bool = False
    ) -> None:
        super().__init__(backbone)
        if image_condition not in ("frame", "none"):
            raise ValueError(f"image_condition {image_condition!r} is not known; choose frame or none")
        if prior_condition and image_condition == "none":
            raise ValueError("prior_condition needs the image beside it: use image_condition frame")
        self.image_condition, self.prior_condition = image_condition, prior_condition
        self.conditions = ("image_latent",) * (image_condition == "frame") + ("prior",) * prior_condition

    @property
    def num_frames(self) -> int:
        """Return the frames of the clip: the backbone's input frames, less the image's."""
        return self.backbone.num_frames - (self.image_condition == "frame")

    @property
    def null_class(self) -> int:
        """Return the null label of classifier-free guidance."""
        return self.backbone.null_class

    def forward(
        self, z: Tensor, t: Tensor, y: Tensor, image_latent: Tensor | None = None, prior: Tensor | None = None
    ) -> Tensor:
        """Predict (B, F, C, h, w) from z of that shape at t (B,) on the scale 0..999, with labels y (B,) int64.

        Raises ValueError unless image_latent (B, C, h, w) and prior (B, F, C, h, w) are given exactly where the model
        is conditioned on them.
        """
        for name, value in {"image_latent": image_latent, "prior": prior}.items():
            if (value is not None) != (name in self.conditions):
                raise ValueError(
                    f"{name} is {'missing' if value is None else 'given'}, but this model was built with "
                    f"image_condition={self.image_condition} and prior_condition={self.prior_condition}"
                )
        x = z if prior is None else torch.cat([z, prior.to(z.dtype)], dim=2)
        if image_latent is not None:
            image = image_latent.to(z.dtype).repeat(1, 1 + self.prior_condition, 1, 1)
            x = torch.cat([image[:, None], x], dim=1)
        return self.backbone(x, t, y)[:, -z.shape[1] :, : z.shape[2]]


class TextImageToVideo(ConditionedBackbone):
    """Base of the two backbones with text: the image latent lies beside every frame, and there are no classes."""

    image_condition: Literal["channels"] = "channels"
    prior_condition = False
    null_class = 0  # any number: these networks ignore the label


class VideoCrafterImageToVideo(TextImageToVideo):
    """VideoCrafter's or DynamiCrafter's network."""

    backbone: VideoCrafter

    def __init__(self, backbone: VideoCrafter) -> None:
        super().__init__(backbone)
        image = ("image_features",) * (backbone.image_proj_model is not None)
        self.conditions = ("image_latent", "text", "stride", *image)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        y: Tensor,
        image_latent: Tensor,
        text: Tensor,
        stride: Tensor,
        image_features: Tensor | None = None,
    ) -> Tensor:
        """Predict (B, F, C, h, w) from z of that shape at t (B,) on the scale 0..999."""
        return self.backbone(beside_every_frame(z, image_latent), t, text, stride, image_features)


class CogVideoXImageToVideo(TextImageToVideo):
    """CogVideoX (Yang et al. 2024): diffusers' transformer with twice the input channels.

    The image's half of the patch embedding starts at zero, as in the authors' fine-tuning of CogVideoX-2B.
    """

    conditions = ("image_latent", "text")
    backbone: "CogVideoXTransformer3DModel"

    def initialise(self, seed: int) -> None:
        """Draw fresh weights by each layer's own initialisation, from the seed; the global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.backbone.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    def forward(self, z: Tensor, t: Tensor, y: Tensor, image_latent: Tensor, text: Tensor) -> Tensor:
        """Predict (B, F, C, h, w) from z of that shape at t (B,) on the scale 0..999."""
        x, dtype = beside_every_frame(z, image_latent), self.backbone.dtype
        return self.backbone(x.to(dtype), text.to(dtype), t, return_dict=False)[0]


def beside_every_frame(z: Tensor, image_latent: Tensor) -> Tensor:
    """Concatenate z (B, F, C, h, w) and the replicated image latent (B, C, h, w) on the channels: (B, F, 2 C, h, w)."""
    return torch.cat([z, image_latent.to(z.dtype)[:, None].expand_as(z)], dim=2)


VideoNetwork = ImageToVideo | VideoCrafterImageToVideo | CogVideoXImageToVideo
