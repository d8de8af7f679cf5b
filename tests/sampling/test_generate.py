"""A clip depends on its image, class, key and the seed, and on nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_models import SHAPE, load_run, save_model, tiny_model, tiny_settings

from pipeline.data.cache.moments import Moments, save_moments
from pipeline.errors import UserError
from pipeline.models.build import load_model
from pipeline.models.checkpoints.exports import save_checkpoint, save_export
from pipeline.models.checkpoints.published import load_published
from pipeline.models.checkpoints.weights import WeightsMismatch
from pipeline.sampling.exports import find_exports, load_networks
from pipeline.sampling.generate import LoadedModel, generate, make_priors
from pipeline.settings import Settings

KEYS = ["a", "b", "c", "d"]
LABELS = ["bounce", "", "slide left", "never heard of"]


@pytest.fixture(scope="module")
def loaded(tiny_run: Settings) -> LoadedModel:
    return load_run(tiny_run)


def images() -> torch.Tensor:
    return torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(5))


def with_how(loaded: LoadedModel, /, **changes: Any) -> LoadedModel:
    return replace(loaded, how=loaded.how.model_copy(update=changes))


def test_batch_size_does_not_change_a_clip(loaded: LoadedModel) -> None:
    together = generate(loaded, images(), LABELS, KEYS, seed=3)
    for index, key in enumerate(KEYS):
        alone = generate(loaded, images()[index : index + 1], LABELS[index : index + 1], [key], seed=3)
        torch.testing.assert_close(alone.clip[0], together.clip[index], atol=1e-5, rtol=1e-5)
    again = generate(loaded, images(), LABELS, KEYS, seed=3)
    assert torch.equal(again.clip, together.clip)


def test_key_seed_image_and_class_each_change_a_clip(loaded: LoadedModel) -> None:
    def clip(image: int = 0, label: str = "bounce", key: str = "a", seed: int = 0) -> torch.Tensor:
        return generate(loaded, images()[image : image + 1], [label], [key], seed).clip

    base = clip()
    for other in (clip(image=1), clip(label="slide left"), clip(key="b"), clip(seed=1)):
        assert not torch.allclose(base, other, atol=1e-3)


def test_export_samples_as_the_network_it_was_made_of(loaded: LoadedModel, tmp_path: Path) -> None:
    config = loaded.exports.config
    path = save_export(tmp_path / "export", loaded.model.backbone.state_dict(), config)
    again = replace(loaded, model=load_model(str(path))[0])
    found, expected = (generate(one, images(), LABELS, KEYS, seed=0).clip for one in (again, loaded))
    assert torch.equal(found, expected)
    (tmp_path / "authors.pt").write_bytes(save_checkpoint(path))
    published = load_published(tmp_path / "authors.pt")
    assert all(torch.equal(value, published[name]) for name, value in loaded.model.backbone.state_dict().items())


def test_neural_prior_is_the_starting_point(loaded: LoadedModel) -> None:
    shown, prior = make_priors(loaded, images(), LABELS)
    assert shown is prior
    assert prior.shape == (4, *SHAPE)
    assert torch.equal(generate(loaded, images(), LABELS, KEYS, seed=0).prior, prior)
    assert not torch.allclose(prior, images()[:, None].expand_as(prior))


def test_one_step_does_without_noise(loaded: LoadedModel) -> None:
    single = with_how(loaded, steps=1)
    assert torch.equal(
        generate(single, images(), LABELS, KEYS, seed=0).clip, generate(single, images(), LABELS, KEYS, seed=9).clip
    )


def test_guidance_of_one_is_one_evaluation(loaded: LoadedModel) -> None:
    calls: list[int] = []
    handle = loaded.model.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    try:
        generate(loaded, images(), LABELS, KEYS, seed=0)
        assert calls == [4, 4, 4]
        calls.clear()
        generate(with_how(loaded, guidance=2.0), images(), LABELS, KEYS, seed=0)
        assert calls == [8, 8, 8]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("process", "image_condition", "prior_condition"),
    [
        ("diffusion", "none", False),
        ("diffusion", "frame", False),
        ("diffusion", "frame", True),
        ("bridge", "frame", True),
    ],
)
def test_every_process_and_condition_samples(
    tmp_path: Path, tiny_vae: Path, process: str, image_condition: str, prior_condition: bool
) -> None:
    settings = tiny_settings(
        tmp_path, tiny_vae, "--bridge.saf=false", "--bridge.prior=replicated", f"--bridge.process={process}"
    )
    model = tiny_model(image_condition, prior_condition)
    save_model(settings, Path(settings.model_export), "image_to_video", model)
    if prior_condition:  # F_eta is shown, though the bridge starts from the replicated image
        save_model(settings, Path(settings.prior_export), "prior", tiny_model("none"), seed=1)
    loaded = load_run(settings)
    assert (loaded.prior is not None) == prior_condition
    made = generate(loaded, images(), LABELS, KEYS, seed=0)
    assert made.clip.shape == (4, *SHAPE)
    assert bool(made.clip.isfinite().all())
    assert torch.equal(made.prior, images()[:, None].expand(4, *SHAPE))


@pytest.mark.parametrize(
    ("name", "evaluations", "draws"),
    [
        ("sde_first_order", 4, True),
        ("ode_first_order", 4, False),
        ("ode_second_order", 7, False),
        ("stochastic_heun", 10, True),
        ("dbim", 4, True),
    ],
)
def test_every_bridge_sampler(loaded: LoadedModel, name: str, evaluations: int, draws: bool) -> None:
    chosen = with_how(loaded, sampler=name, steps=4, spacing="quadratic", order=3 if name == "dbim" else 1)
    calls: list[int] = []
    handle = loaded.model.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    try:
        made = [generate(chosen, images(), LABELS, KEYS, seed=seed).clip for seed in (0, 1)]
    finally:
        handle.remove()
    assert len(calls) == 2 * evaluations
    assert bool(made[0].isfinite().all())
    assert torch.equal(*made) != draws


def test_analytic_init_starts_from_the_marginal(tmp_path: Path, tiny_vae: Path) -> None:
    settings = tiny_settings(
        tmp_path,
        tiny_vae,
        "--bridge.saf=false",
        "--bridge.process=diffusion",
        f"--sample.analytic_init={tmp_path}/moments",
    )
    save_model(settings, Path(settings.model_export), "image_to_video", tiny_model())
    with pytest.raises(UserError, match=r"no moments.json; jobs/latent_moments.py makes RUN/moments"):
        generate(load_run(settings), images(), LABELS, KEYS, seed=0)
    save_moments(str(tmp_path / "moments"), Moments(10, np.full(SHAPE, 3.0), 4.0 * 10 * np.prod(SHAPE)), "-")
    loaded = with_how(load_run(settings), start=0.5)
    started: list[torch.Tensor] = []
    handle = loaded.model.register_forward_pre_hook(lambda module, given: started.append(given[0]))
    try:
        generate(loaded, images(), LABELS, KEYS, seed=0)
    finally:
        handle.remove()
    abar = float(loaded.alphas_cumprod[499])
    assert float(started[0].mean()) == pytest.approx(abar**0.5 * 3.0, abs=0.1)
    assert float(started[0].var()) == pytest.approx(abar * 4.0 + 1 - abar, rel=0.15)


def test_sampler_of_another_process_is_one_line(loaded: LoadedModel) -> None:
    wrong = {"sampler": "ddim"}, {"start": 0.9}, {"eta": 0.5}
    for changes in wrong:
        with pytest.raises(UserError, match=next(iter(changes))):
            generate(with_how(loaded, **changes), images(), LABELS, KEYS, seed=0)


def test_wrong_exports_are_one_line(tmp_path: Path, tiny_vae: Path, tiny_run: Settings) -> None:
    settings = tiny_settings(tmp_path, tiny_vae)
    with pytest.raises(UserError, match=r"no export there .*jobs/finetune.py"):
        find_exports(settings.model_export, settings.bridge, settings.run.folder)
    save_model(settings, Path(settings.model_export), "image_to_video", tiny_model())
    with pytest.raises(UserError, match=r"no export there .*jobs/train_prior.py"):
        find_exports(settings.model_export, settings.bridge, settings.run.folder)
    other = tiny_settings(tmp_path, tiny_vae, f"--bridge.prior_path={tiny_run.prior_export}")
    assert find_exports(other.model_export, other.bridge, other.run.folder).prior_path == tiny_run.prior_export
    save_model(settings, Path(settings.prior_export), "prior", tiny_model("none"), latent_shape=[8, 4, 4, 4])
    with pytest.raises(UserError, match=r"prior/export: has latents of F, C, h, w = .* was trained on"):
        find_exports(settings.model_export, settings.bridge, settings.run.folder)
    swapped = tiny_settings(tmp_path, tiny_vae, f"--bridge.prior_path={settings.model_export}")
    with pytest.raises(UserError, match="holds a image_to_video model, expected prior"):
        load_networks(find_exports(swapped.model_export, swapped.bridge, swapped.run.folder))
    wider = tiny_model().model_copy(update={"hidden_size": 64})
    save_model(tiny_run, tmp_path / "odd", "image_to_video", tiny_model(), model=wider.model_dump())
    with pytest.raises(WeightsMismatch):
        load_networks(find_exports(str(tmp_path / "odd"), tiny_run.bridge, tiny_run.run.folder))
