"""Mixed Inversion (BIVDiff, CVPR 2024, eq. 2 to 4): frames of an image model as a video model's noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..models.vae import Vae
from .diffusion import LatentDiffusion

# relative; VAEs whose latents of a picture differ by more have two latent spaces, half precision allowed for
APART = 0.05
PICTURE = 64  # pixels along its side


class Inverted(NamedTuple):
    """z_T (B, F, C, h, w) of one clip by both models, as the video model's noise; None where it is not needed."""

    image: Tensor | None
    video: Tensor | None


def invert_both(
    image: LatentDiffusion | None, video: LatentDiffusion, z0: Tensor, alphas: list[float], steps: int
) -> Inverted:
    """DDIM inversion of a clip z0, in the video model's scale: of each frame (eq. 2), and of the whole (eq. 3).

    Both are by the empty prompt. An inversion that mixing by `alphas` does not need is left out.
    """
    z_image = z_video = None
    if image is not None and max(alphas) > 0:
        frames = z0 * (image.vae.scaling_factor / video.vae.scaling_factor)
        z_image = carry(image.invert(frames, steps), frames, image, video, steps)
    if min(alphas) < 1:
        z_video = video.invert(z0, steps)
    return Inverted(z_image, z_video)


def mix(inverted: Inverted, alpha: float) -> Tensor:
    """Eq. 4: z_T = alpha z_T^img + (1 - alpha) z_T^video; alpha 0 and 1 are the two themselves."""
    ends = (alpha, inverted.image), (1 - alpha, inverted.video)
    parts = [share * z for share, z in ends if share and z is not None]
    assert len(parts) == (alpha > 0) + (alpha < 1), "an inversion that the mix needs is missing"
    return torch.stack(parts).sum(0)


def carry(z_T: Tensor, z0: Tensor, image: LatentDiffusion, video: LatentDiffusion, steps: int) -> Tensor:
    """Turn the image model's z_T of the clip z0, both in its scale, into a z_T of the video model.

    z_T = alpha z_0 + sigma eps. eps is kept; alpha and sigma become those of the video model's last step, and z_0 is
    scaled as its latents are. Between models of one schedule and scale, as the paper's are, nothing changes.
    """
    abar, abar_video = image.last(steps), video.last(steps)
    if abar == abar_video and image.vae.scaling_factor == video.vae.scaling_factor:
        return z_T
    eps = (z_T - abar.sqrt() * z0) / (1 - abar).sqrt()
    return (
        abar_video.sqrt() * z0 * (video.vae.scaling_factor / image.vae.scaling_factor) + (1 - abar_video).sqrt() * eps
    )


def check_one_space(image: LatentDiffusion, video: LatentDiffusion) -> None:
    """Raise UserError unless the models' latents are the same but for their scaling factors."""
    key = f"bivdiff.video_model = {video.name}"
    if video.vae.temporal > 1:
        raise UserError(
            f"{key}: its VAE makes one latent of {video.vae.temporal} frames, and an image model's inversion has one "
            "of each; give a model of an image VAE's latents, or bivdiff.framework vdm_only"
        )
    remedy = "give models that share a VAE, as Stable Diffusion 1.5 and ZeroScope do"
    if image.channels != video.channels:
        raise UserError(f"{key}: latents of {video.channels} channels, {image.name} has {image.channels}; {remedy}")
    one, other = (encoded(model.vae) for model in (image, video))
    if one.shape != other.shape:
        raise UserError(
            f"{key}: latents of {list(other.shape[-2:])} for {PICTURE} x {PICTURE} pixels, "
            f"{image.name} has {list(one.shape[-2:])}; {remedy}"
        )
    apart = float((one - other).norm() / other.norm())
    if not apart <= APART:
        raise UserError(
            f"{key}: latents of a picture are {apart:.0%} from those of {image.name}, more than {APART:.0%}; {remedy}"
        )


def encoded(vae: Vae) -> Tensor:
    """Encode a picture with edges, gradients and texture to a latent (C, h, w), unscaled."""
    noise = torch.randint(0, 64, (PICTURE, PICTURE, 3), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 191, PICTURE).long()
    down, across = torch.meshgrid(ramp, ramp, indexing="ij")
    picture = torch.stack([down, across, across.flip(1)], -1)
    picture[PICTURE // 4 : PICTURE // 2, PICTURE // 4 : PICTURE // 2] = torch.tensor([180, 20, 20])
    return vae.encode((picture + noise).byte()[None])[0][0].cpu()


def check_one_trajectory(image: LatentDiffusion, video: LatentDiffusion, framework: str) -> None:
    """Raise UserError unless a z_t of one model is a z_t of the other, and a prediction means the same."""
    tables = image.alphas_cumprod, video.alphas_cumprod
    same_schedule = len(tables[0]) == len(tables[1]) and torch.allclose(*tables, rtol=1e-3, atol=0)
    for what, alike in (
        ("schedule", same_schedule),
        (f"scaling factor ({video.vae.scaling_factor:g})", image.vae.scaling_factor == video.vae.scaling_factor),
        (f"prediction ({video.target})", image.target == video.target),
    ):
        if not alike:
            raise UserError(
                f"bivdiff.framework = {framework}: {video.name} has another {what} than {image.name}, and the two "
                "would share every step; set bivdiff.framework bivdiff, which converts between them"
            )
