"""train.init and the neural prior: what fits is kept and told, what does not is refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_cache import CLASSES, tiny_settings
from safetensors.torch import save_file

from pipeline.data.cache.info import CacheSpec
from pipeline.errors import UserError
from pipeline.models.build import build_image_to_video, build_prior
from pipeline.models.checkpoints.exports import save_export
from pipeline.models.checkpoints.weights import WeightsMismatch
from pipeline.settings import Settings
from pipeline.train.export.write import export_config
from pipeline.train.initial import check_prior, load_initial, untrained
from pipeline.train.plan import prepare
from pipeline.train.spec import Job, train_spec

TEACHER = ("--bridge.process=diffusion", "--model.image_condition=none")


def write_model(folder: Path, settings: Settings, spec: CacheSpec, prior: bool = False, **changes: Any) -> Path:
    """An export as jobs/finetune.py (or train_prior.py) leaves it, all weights 0.5."""
    job: Job = "prior" if prior else "finetune"
    config = export_config(train_spec(job, settings, spec)) | changes
    shape, classes = config["latent_shape"], len(config["classes"])
    if prior:
        model: torch.nn.Module = build_prior(settings.prior.model, shape, classes)
    else:
        model = build_image_to_video(settings.model, shape, classes)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    backbone: Any = model.backbone
    return save_export(folder, backbone.state_dict(), config)


@pytest.fixture(scope="module")
def spec(storage: Path) -> CacheSpec:
    return prepare("finetune", tiny_settings(storage)).cache.spec


@pytest.fixture(scope="module")
def teacher(storage: Path, spec: CacheSpec) -> Path:
    settings = tiny_settings(storage, *TEACHER)
    return write_model(storage / "teacher", settings, spec, classes=["slide", "spin"])


def start(settings: Settings, spec: CacheSpec) -> tuple[torch.nn.Module, str]:
    model = untrained(train_spec("finetune", settings, spec))
    return model, load_initial(train_spec("finetune", settings, spec), model.backbone)


def test_a_bridge_starts_from_the_teacher(storage: Path, spec: CacheSpec, teacher: Path) -> None:
    settings = tiny_settings(storage, f"--train.init={teacher}", "--bridge.saf=true")
    model, told = start(settings, spec)
    assert "1 of 2 classes known" in told and str(teacher) in told
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in model.parameters())
    assert prepare("finetune", settings).initialised_from == told  # and the driver, without weights, finds the same


def test_saf_from_a_bridge_is_refused(storage: Path, spec: CacheSpec) -> None:
    bridge = write_model(storage / "bridge", tiny_settings(storage), spec)
    settings = tiny_settings(storage, f"--train.init={bridge}", "--bridge.saf=true")
    with pytest.raises(UserError, match=r"is a bridge model, but bridge.saf aligns the bridge to a diffusion"):
        prepare("finetune", settings)
    start(tiny_settings(storage, f"--train.init={bridge}"), spec)  # without SAF one may go on from it


def test_saf_to_another_schedule_than_the_teachers_is_refused(storage: Path, teacher: Path) -> None:
    settings = tiny_settings(storage, f"--train.init={teacher}", "--bridge.saf=true", "--bridge.pretrained_snr_shift=3")
    with pytest.raises(UserError, match=r"bridge.pretrained_snr_shift = 3.0: .* trained with 1.0; set it alike"):
        prepare("finetune", settings)


@pytest.mark.parametrize("key", ["hidden_size=32", "depth=4", "patch_size=1"])
def test_another_models_weights_are_refused(storage: Path, teacher: Path, key: str) -> None:
    settings = tiny_settings(storage, f"--train.init={teacher}", f"--model.{key}")
    with pytest.raises(WeightsMismatch, match=r"train.init = .*does not fit the model") as caught:
        prepare("finetune", settings)
    assert "\n" not in str(caught.value)


def test_other_latents_are_refused(storage: Path, spec: CacheSpec) -> None:
    settings = tiny_settings(storage, *TEACHER)
    longer = write_model(storage / "longer", settings, spec, latent_shape=[8, 4, 4, 4])
    with pytest.raises(UserError, match="8 x 4 x 4 x 4, the cache has 4 x 4 x 4 x 4"):
        prepare("finetune", tiny_settings(storage, f"--train.init={longer}"))
    vae = {"path": "other", "weights_hash": "0" * 64, "scaling_factor": 1.0}
    other = write_model(storage / "other", settings, spec, vae=vae)
    with pytest.raises(UserError, match=r"VAE other.*cache is of another"):
        prepare("finetune", tiny_settings(storage, f"--train.init={other}"))


def test_a_prior_is_refused_as_a_video_model(storage: Path, spec: CacheSpec) -> None:
    prior = write_model(storage / "a_prior", tiny_settings(storage), spec, prior=True)
    with pytest.raises(UserError, match="holds a prior model, expected image_to_video"):
        prepare("finetune", tiny_settings(storage, f"--train.init={prior}"))
    settings = tiny_settings(storage, f"--prior.train.init={prior}")
    assert "2 of 2 classes known" in prepare("prior", settings).initialised_from


@pytest.mark.parametrize(("classes", "kept"), [(2, 2), (5, 0)])
def test_a_published_file_is_taken_to_have_the_same_classes(
    storage: Path, spec: CacheSpec, classes: int, kept: int
) -> None:
    settings = tiny_settings(storage)
    model = build_image_to_video(settings.model, spec.latent_shape, classes)
    file = storage / f"published{classes}.safetensors"
    save_file({f"module.{name}": value.contiguous() for name, value in model.backbone.state_dict().items()}, file)
    assert f"{kept} of 2 classes known" in start(tiny_settings(storage, f"--train.init={file}"), spec)[1]


@pytest.mark.parametrize("path", ["/no/such/folder", "shipped:nothing"])
def test_a_missing_init_is_refused_by_name(storage: Path, path: str) -> None:
    with pytest.raises(UserError, match=path):
        prepare("finetune", tiny_settings(storage, f"--train.init={path}"))


def test_a_missing_prior_names_the_job_that_makes_it(storage: Path, spec: CacheSpec) -> None:
    settings = tiny_settings(storage, "--bridge.prior=neural")
    with pytest.raises(UserError, match=r"run jobs/train_prior.py first, or set bridge.prior replicated"):
        prepare("finetune", settings)
    model = write_model(storage / "not_prior", tiny_settings(storage), spec)
    with pytest.raises(UserError, match="expected prior"):
        check_prior(str(model), spec)
    longer = tiny_settings(storage)
    path = write_model(storage / "long_prior", longer, spec, prior=True, latent_shape=[8, 4, 4, 4])
    with pytest.raises(UserError, match="8 x 4 x 4 x 4"):
        check_prior(str(path), spec)


def test_the_cached_classes_decide_the_model(spec: CacheSpec) -> None:
    assert spec.classes == CLASSES
