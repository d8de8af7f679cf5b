"""A clip depends on its image, class, key and the seed, and on nothing else."""

from pathlib import Path

import pytest
import torch
from tiny_models import SHAPE, save_model, tiny_model, tiny_settings

from pipeline.models.weights import WeightsMismatch
from pipeline.sampling.generate import Sampler, find_exports, generate, load_networks, load_sampler, make_prior
from pipeline.settings import Settings, UserError

KEYS = ["a", "b", "c", "d"]
LABELS = ["bounce", "", "slide left", "never heard of"]


@pytest.fixture(scope="module")
def sampler(tiny_run: Settings) -> Sampler:
    return load_sampler(tiny_run)


def images() -> torch.Tensor:
    return torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(5))


def test_batch_size_does_not_change_a_clip(sampler: Sampler) -> None:
    together = generate(sampler, images(), LABELS, KEYS, seed=3)
    for index, key in enumerate(KEYS):
        alone = generate(sampler, images()[index : index + 1], LABELS[index : index + 1], [key], seed=3)
        torch.testing.assert_close(alone.clip[0], together.clip[index], atol=1e-5, rtol=1e-5)
    again = generate(sampler, images(), LABELS, KEYS, seed=3)
    assert torch.equal(again.clip, together.clip)


def test_key_seed_image_and_class_each_change_a_clip(sampler: Sampler) -> None:
    def clip(image: int = 0, label: str = "bounce", key: str = "a", seed: int = 0) -> torch.Tensor:
        return generate(sampler, images()[image : image + 1], [label], [key], seed).clip

    base = clip()
    for other in (clip(image=1), clip(label="slide left"), clip(key="b"), clip(seed=1)):
        assert not torch.allclose(base, other, atol=1e-3)


def test_neural_prior_is_the_starting_point(sampler: Sampler) -> None:
    prior = make_prior(sampler, images(), LABELS)
    assert prior.shape == (4, *SHAPE)
    assert torch.equal(generate(sampler, images(), LABELS, KEYS, seed=0).prior, prior)
    assert not torch.allclose(prior, images()[:, None].expand_as(prior))


def test_one_step_does_without_noise(sampler: Sampler) -> None:
    single = Sampler(**{**vars(sampler), "steps": 1})
    assert torch.equal(
        generate(single, images(), LABELS, KEYS, seed=0).clip, generate(single, images(), LABELS, KEYS, seed=9).clip
    )


def test_guidance_of_one_is_one_evaluation(sampler: Sampler) -> None:
    calls: list[int] = []
    handle = sampler.model.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    try:
        generate(sampler, images(), LABELS, KEYS, seed=0)
        assert calls == [4, 4, 4]
        calls.clear()
        generate(Sampler(**{**vars(sampler), "guidance": 2.0}), images(), LABELS, KEYS, seed=0)
        assert calls == [8, 8, 8]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("process", "image_condition", "prior_condition"),
    [("diffusion", "none", False), ("diffusion", "frame", False), ("bridge", "frame", True)],
)
def test_other_processes_and_conditions(
    tmp_path: Path, tiny_vae: Path, process: str, image_condition: str, prior_condition: bool
) -> None:
    settings = tiny_settings(
        tmp_path, tiny_vae, "--bridge.saf=false", "--bridge.prior=replicated", f"--bridge.process={process}"
    )
    model = tiny_model(image_condition, prior_condition)
    save_model(settings, Path(settings.model_export), "image_to_video", model)
    sampler = load_sampler(settings)
    made = generate(sampler, images(), LABELS, KEYS, seed=0)
    assert made.clip.shape == (4, *SHAPE)
    assert bool(made.clip.isfinite().all())
    assert torch.equal(made.prior, images()[:, None].expand(4, *SHAPE))


def test_wrong_exports_are_one_line(tmp_path: Path, tiny_vae: Path, tiny_run: Settings) -> None:
    settings = tiny_settings(tmp_path, tiny_vae)
    with pytest.raises(UserError, match=r"no export there .*jobs/finetune.py"):
        find_exports(settings)
    save_model(settings, Path(settings.model_export), "image_to_video", tiny_model())
    with pytest.raises(UserError, match=r"no export there .*jobs/train_prior.py"):
        find_exports(settings)
    other = tiny_settings(tmp_path, tiny_vae, f"--bridge.prior_path={tiny_run.prior_export}")
    assert find_exports(other).prior_path == tiny_run.prior_export
    save_model(settings, Path(settings.prior_export), "prior", tiny_model("none"), latent_shape=[8, 4, 4, 4])
    with pytest.raises(UserError, match="was trained on latents of"):
        find_exports(settings)
    swapped = tiny_settings(tmp_path, tiny_vae, f"--bridge.prior_path={settings.model_export}")
    with pytest.raises(UserError, match="holds a image_to_video model, expected prior"):
        load_networks(find_exports(swapped))
    wider = tiny_model().model_copy(update={"hidden_size": 64})
    save_model(tiny_run, tmp_path / "odd", "image_to_video", tiny_model(), model=wider.model_dump())
    odd = tiny_run.model_copy(
        update={"sample": tiny_run.sample.model_copy(update={"model_path": str(tmp_path / "odd")})}
    )
    with pytest.raises(WeightsMismatch):
        load_networks(find_exports(odd))
