"""DDIM inversion and DDIM sampling: there and back."""

import numpy as np
import pytest
import torch
from helpers.tiny_bivdiff import Folders

from pipeline.bivdiff.diffusion import LatentDiffusion, Prompt, ddim_invert, image_diffusion, video_diffusion
from pipeline.bivdiff.models import load_pipeline
from pipeline.bridge.samplers import ddim, diffusion_clean
from pipeline.bridge.schedule import ddpm_alphas_cumprod, sampling_indices
from pipeline.settings.bivdiff import BivdiffSettings

STEPS = np.array([20, 40, 80])
TOLERANCE = 0.15  # of 80 steps, relative to the clip; random networks are rougher than trained ones


@pytest.fixture(scope="module")
def image(folders: Folders, float32: BivdiffSettings) -> LatentDiffusion:
    pipe = load_pipeline("image_model", "StableDiffusionPipeline", float32, "cpu")
    return image_diffusion(pipe, folders.image)


@pytest.fixture(scope="module")
def video(folders: Folders, float32: BivdiffSettings) -> LatentDiffusion:
    pipe = load_pipeline("video_model", "TextToVideoSDPipeline", float32, "cpu")
    return video_diffusion(pipe, folders.video)


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_round_trip_comes_nearer_with_the_steps(kind: str, request: pytest.FixtureRequest) -> None:
    model: LatentDiffusion = request.getfixturevalue(kind)
    z0 = latents()
    errors = []
    for steps in STEPS.tolist():
        back = model.sample(model.invert(z0, steps), Prompt(), steps, z0)
        errors.append(float((back - z0).norm() / z0.norm()))
    print(f"{kind}: relative errors of {STEPS.tolist()} steps: {[f'{error:.4f}' for error in errors]}")
    assert errors[-1] < TOLERANCE
    order = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    assert errors[0] > errors[1] > errors[2] and 0.7 < order < 1.5, "an error of first order in the step"


@pytest.mark.parametrize("target", ["noise", "v", "z0"])
def test_round_trip_is_exact_where_the_network_does_not_look_at_its_latent(target: str) -> None:
    table, indices, z0 = ddpm_alphas_cumprod(scaled=True), sampling_indices(7), latents().double()
    constant = latents(1).double()

    def denoise(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # predicts the same noise, in any parametrisation
        abar = table[t.long()[0]]
        clean = (z - (1 - abar).sqrt() * constant) / abar.sqrt()
        if target == "noise":
            return constant
        return clean if target == "z0" else abar.sqrt() * constant - (1 - abar).sqrt() * clean

    clean = diffusion_clean(denoise, table, target)  # type: ignore[arg-type]
    z_T = ddim_invert(clean, table, z0, indices)
    assert torch.allclose(z_T, table[-1].sqrt() * z0 + (1 - table[-1]).sqrt() * constant)
    assert torch.allclose(ddim(clean, table, z_T, indices), z0)


def test_image_model_sees_every_frame_by_itself_and_video_model_does_not(
    image: LatentDiffusion, video: LatentDiffusion
) -> None:
    z0 = latents()
    other = z0.clone()
    other[:, 1] += 1
    for model, alone in ((image, True), (video, False)):
        one, two = model.invert(z0, 3), model.invert(other, 3)
        assert torch.allclose(one[:, 0], two[:, 0], atol=1e-5) == alone, model.name
        assert not torch.allclose(one[:, 1], two[:, 1], atol=1e-2)


def test_guidance_is_towards_the_prompt_and_away_from_the_negative_one(image: LatentDiffusion) -> None:
    z, t = latents(), torch.full((1,), 500.0)

    def prediction(*asked: object) -> torch.Tensor:
        return image.conditioned(Prompt(*asked), z[:, 0])(z, t)  # type: ignore[arg-type]

    with torch.no_grad():
        dog, cat, guided = prediction("a dog"), prediction("a cat"), prediction("a dog", "a cat", 3.0)
    assert torch.allclose(guided, cat + 3 * (dog - cat), atol=1e-4)
    assert not torch.allclose(dog, cat, atol=1e-4)
