"""Contradictions in section `bivdiff` are refused, and its recipes are the paper's."""

import pytest

from pipeline.errors import UserError
from pipeline.settings import Settings, load, recipes
from pipeline.settings.bivdiff import PAPER_ALPHA

RECIPES = [name for name in recipes() if name.startswith("bivdiff-")]
MODELS = ["image_model", "adapter", "inversion_model", "video_model"]


def settings_of(*lines: str, given: str = "", recipe: str | None = None) -> Settings:
    models = [f"--bivdiff.{name}=x" for name in MODELS if name in given.split()]
    return load([*(["--recipe", recipe] if recipe else []), "--bivdiff.items=list.csv", *models, *lines])[0]


@pytest.mark.parametrize(
    ("lines", "given", "words"),
    [
        ((), "", "bivdiff.image_model = null: bivdiff.task = controlnet"),
        ((), "image_model adapter", "bivdiff.video_model = null"),
        ((), "image_model video_model", "bivdiff.adapter = null"),
        (("--bivdiff.task=inpainting",), "image_model video_model", "bivdiff.inversion_model = null"),
        (("--bivdiff.canny=[200, 100]",), "image_model video_model adapter", "give the lower threshold first"),
        (
            ("--bivdiff.task=prompt_to_prompt", "--bivdiff.guidance=1"),
            "image_model video_model",
            "bivdiff.guidance = 1.0: prompt_to_prompt",
        ),
        (("--bivdiff.alpha=[0.5, 2]",), "image_model video_model adapter", "bivdiff.alpha"),
    ],
)
def test_a_contradiction_is_refused_in_one_line(lines: tuple[str, ...], given: str, words: str) -> None:
    with pytest.raises(UserError) as problem:
        settings_of(*lines, given=given)
    assert words in str(problem.value) and "\n" not in str(problem.value)


def test_a_framework_needs_its_own_models_only() -> None:
    settings_of("--bivdiff.framework=vdm_only", given="video_model")
    settings_of("--bivdiff.framework=idm_only", given="image_model adapter")
    settings_of("--bivdiff.task=inpainting", "--bivdiff.alpha=0", given="image_model video_model")


def test_alpha_is_the_papers_or_a_number_or_a_sweep() -> None:
    every = "image_model adapter inversion_model video_model"
    for task, alpha in PAPER_ALPHA.items():
        assert settings_of(f"--bivdiff.task={task}", given=every).bivdiff.alphas == [alpha]
    assert settings_of("--bivdiff.alpha=[1, 0, 0.5, 0]", given=every).bivdiff.alphas == [0, 0.5, 1]


def test_a_framework_without_inversion_has_one_alpha_whatever_is_set() -> None:
    given = settings_of("--bivdiff.alpha=[1, 0]", given="image_model adapter video_model").bivdiff
    fused = given.model_copy(update={"framework": "fuse"})
    assert len(fused.alphas) == 1 and not fused.inverts_frames


def test_recipes_have_the_papers_settings() -> None:
    """8 frames of 512 x 512, 50 steps, guidance 7.5, and the mixing ratio of the task, for every task."""
    found = set()
    for name in RECIPES:
        settings = settings_of(recipe=name)
        bivdiff, data = settings.bivdiff, settings.data
        assert (data.frames, data.height, data.width, bivdiff.steps, bivdiff.guidance) == (8, 512, 512, 50, 7.5)
        assert bivdiff.alphas == [PAPER_ALPHA[bivdiff.task]] and bivdiff.framework == "bivdiff"
        found.add((bivdiff.task, bivdiff.control if bivdiff.task == "controlnet" else "", bivdiff.edit))
    assert {task for task, _, _ in found} == set(PAPER_ALPHA)
    assert {control for task, control, _ in found if task == "controlnet"} == {"files", "canny"}
    assert {edit for task, _, edit in found if task == "prompt_to_prompt"} == {"replace", "refine"}
