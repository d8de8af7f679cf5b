"""Mixed Inversion: its two ends, and what it refuses to mix."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.tiny_bivdiff import Folders
from helpers.tiny_diffusers import save_video_model
from helpers.tiny_vae import save_tiny_vae

from pipeline.bivdiff.diffusion import LatentDiffusion, Prompt, video_diffusion
from pipeline.bivdiff.mixed import carry, check_one_space, check_one_trajectory, invert_both, mix
from pipeline.bivdiff.models import load_pipeline
from pipeline.bridge.schedule import ddpm_alphas_cumprod, sampling_indices
from pipeline.errors import UserError
from pipeline.models.vae import Vae, load_vae
from pipeline.settings.bivdiff import BivdiffSettings

STEPS = 4


def vae_of(factor: float) -> Vae:
    """A scaling factor, without a network."""
    return Vae(module=cast(Any, None), scaling_factor=factor, weights_hash="")


def model_of(factor: float, **values: Any) -> LatentDiffusion:
    """A model whose noise is `factor` times its latent."""
    table = ddpm_alphas_cumprod(0.00085, 0.012, scaled=True)
    same = LatentDiffusion(
        name=f"model {factor}",
        conditioned=lambda prompt, first: lambda z, t: factor * z,
        target="noise",
        alphas_cumprod=table,
        indices=lambda steps: sampling_indices(steps),
        vae=vae_of(0.18215),
        channels=4,
    )
    return replace(same, **values)


@pytest.fixture
def z0() -> torch.Tensor:
    return torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_alpha_0_and_1_are_the_two_inversions_exactly_and_between_is_between(z0: torch.Tensor) -> None:
    image, video = model_of(0.1), model_of(0.2)
    both = invert_both(image, video, z0, [0.0, 0.25, 1.0], STEPS)
    one, other = image.invert(z0, STEPS), video.invert(z0, STEPS)
    assert torch.equal(mix(both, 1.0), one) and torch.equal(mix(both, 0.0), other)
    assert not torch.equal(one, other)
    assert torch.allclose(mix(both, 0.25), 0.25 * one + 0.75 * other)


def test_only_what_is_mixed_is_inverted(z0: torch.Tensor) -> None:
    def never(prompt: Prompt, first: torch.Tensor) -> Any:
        raise AssertionError("this inversion is not needed")

    image, video = model_of(0.1), model_of(0.2)
    assert torch.equal(
        mix(invert_both(image, replace(video, conditioned=never), z0, [1.0], STEPS), 1.0), image.invert(z0, STEPS)
    )
    assert torch.equal(
        mix(invert_both(replace(image, conditioned=never), video, z0, [0.0], STEPS), 0.0), video.invert(z0, STEPS)
    )


def test_inversion_is_carried_to_another_scale_and_schedule(z0: torch.Tensor) -> None:
    """What the image model finds to be noise stays, and the clip in it is the video model's."""
    image, video = model_of(0.1), model_of(0.2)
    assert torch.equal(carry(z0, z0, image, video, STEPS), z0)
    other = replace(video, vae=vae_of(2 * 0.18215), alphas_cumprod=ddpm_alphas_cumprod())
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1))
    abar, abar_video = image.last(STEPS), other.last(STEPS)
    z_T = abar.sqrt() * z0 + (1 - abar).sqrt() * noise
    carried = carry(z_T, z0, image, other, STEPS)
    assert torch.allclose(carried, abar_video.sqrt() * 2 * z0 + (1 - abar_video).sqrt() * noise, atol=1e-5)
    # the clip is the video model's: the image model is shown it in its own scale
    mixed = mix(invert_both(image, other, 2 * z0, [1.0], STEPS), 1.0)
    assert torch.allclose(mixed, carry(image.invert(z0, STEPS), z0, image, other, STEPS), atol=1e-5)


def test_other_latents_are_refused(tmp_path: Path, folders: Folders) -> None:
    image, video = model_of(0.1), model_of(0.2)
    one, same, other = (
        Vae(load_vae(save_tiny_vae(tmp_path / f"vae{number}", seed)).module, factor, "")
        for number, (seed, factor) in enumerate(((0, 0.5), (0, 0.18215), (1, 0.5)))
    )
    image = replace(image, vae=one)
    check_one_space(image, replace(video, vae=same))  # another factor is converted
    check_one_space(image, replace(video, vae=load_vae(save_tiny_vae(tmp_path / "half", 0), "bfloat16")))
    with pytest.raises(UserError, match=r"latents of a picture are \d+% from those of model 0.1, more than 5%"):
        check_one_space(image, replace(video, vae=other))
    with pytest.raises(UserError, match=r"latents of 16 channels, model 0.1 has 4"):
        check_one_space(image, replace(video, vae=other, channels=16))
    with pytest.raises(UserError, match="makes one latent of 4 frames"):
        check_one_space(image, replace(video, vae=replace(other, temporal=4)))


def test_models_that_cannot_share_steps_are_refused(tmp_path: Path, float32: BivdiffSettings) -> None:
    image = model_of(0.1)
    check_one_trajectory(image, model_of(0.2), "fuse")
    for change, words in (
        ({"alphas_cumprod": ddpm_alphas_cumprod()}, "another schedule"),
        ({"vae": vae_of(0.5)}, "another scaling factor"),
        ({"target": "v"}, "another prediction"),
    ):
        with pytest.raises(UserError, match=words):
            check_one_trajectory(image, model_of(0.2, **change), "fuse")
    folder = save_video_model(tmp_path / "v", prediction_type="v_prediction")
    other = float32.model_copy(update={"video_model": folder})
    video = video_diffusion(load_pipeline("video_model", "TextToVideoSDPipeline", other, "cpu"), folder)
    with pytest.raises(UserError, match=r"another prediction \(v\).*set bivdiff.framework bivdiff"):
        check_one_trajectory(image, video, "alternate")
