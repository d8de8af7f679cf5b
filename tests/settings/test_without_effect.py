"""A setting that does nothing beside the others is refused when typed, and said when it comes from a recipe."""

import fnmatch
import logging

import pytest

from pipeline.errors import UserError
from pipeline.settings import ROOT, Settings, load, recipes
from pipeline.settings.section import dotted_names
from pipeline.settings.without_effect import READ_BY_TASKS, READ_ONLY_WITH, without_effect

NAMES = set(dotted_names(Settings))
UNET3D = ["--recipe", "webvid-videocrafter"]
COGVIDEOX = ["--recipe", "webvid-cogvideox"]
PLAIN = ["--recipe", "ucf101-bridge"]  # a bridge without SAF
DIFFUSION = ["--recipe", "ucf101-vdt-i2v"]
BIVDIFF = ["--recipe", "bivdiff-controlnet-depth", "--bivdiff.items=list.csv"]


@pytest.mark.parametrize(
    ("base", "typed", "cause"),
    [
        (PLAIN, "bridge.saf_edge=latte", "with bridge.saf = false; leave it out, or set bridge.saf true"),
        (DIFFUSION, "bridge.saf_edge=cogvideox", "with bridge.process = diffusion"),
        (PLAIN, "bridge.pretrained_betas=scaled_linear", "or set bridge.saf true"),
        (PLAIN, "bridge.pretrained_beta_start=0.001", "with bridge.process = bridge and bridge.saf = false"),
        (PLAIN, "bridge.pretrained_beta_end=0.03", "with bridge.process = bridge and bridge.saf = false"),
        (PLAIN, "bridge.pretrained_snr_shift=3", "with bridge.process = bridge and bridge.saf = false"),
        (PLAIN, "bridge.pretrained_zero_terminal_snr=true", "with bridge.process = bridge and bridge.saf = false"),
        (PLAIN, "bridge.loss_weight=noise", "set it uniform, or bridge.target v or z0"),
        (PLAIN, "bridge.time_noise_power=3", "with bridge.time_noise = null; leave it out, or set bridge.time_noise"),
        (DIFFUSION, "bridge.prior=neural", "set it replicated, or model.prior_condition true"),
        (PLAIN, "bridge.cached_prior=true", "set it false, or bridge.prior neural, or model.prior_condition true"),
        (DIFFUSION, "bridge.schedule=vp", "with bridge.process = diffusion"),
        (DIFFUSION, "bridge.beta1=20", "with bridge.process = diffusion"),
        (UNET3D, "model.size=L", "with model.backbone = unet3d, whose sizes are in model.unet3d; leave it out"),
        (UNET3D, "model.patch_size=1", "with model.backbone = unet3d"),
        (COGVIDEOX, "model.size=L", "with model.backbone = cogvideox, whose sizes are in model.cogvideox"),
        (PLAIN, "model.unet3d.dropout=0.2", "with model.backbone = latte; leave it out, or set model.backbone unet3d"),
        (PLAIN, "model.cogvideox.num_layers=2", "leave it out, or set model.backbone cogvideox"),
        ([*UNET3D, "--model.unet3d.image_encoder=null"], "model.unet3d.resampler_depth=2", "image_encoder = null"),
        (COGVIDEOX, "sample.stride=2", "with model.backbone = cogvideox, which does not read the stride; leave it out"),
        (PLAIN, "sample.stride=2", "with model.backbone = latte, which does not read the stride"),
        (PLAIN, "sample.while_training_count=2", "with sample.while_training = null"),
        (PLAIN, "text.max_length=12", "with text.path = null; leave it out, or set text.path"),
        (PLAIN, "train.lora.alpha=8", "with train.lora.rank = null; leave it out, or set train.lora.rank"),
        (PLAIN, "prior.train.lora.alpha=8", "with prior.train.lora.rank = null"),
        (UNET3D, "data.split_list=2", "with data.source = webvid, which has no list to choose; leave it out"),
        (PLAIN, "data.holdout_fraction=0.1", "with data.source = ucf101, which has a split of its own"),
        (
            [*PLAIN, "--data.source=folder"],
            "data.annotations=x",
            "with data.source = folder, which reads no annotations",
        ),
        (PLAIN, "data.clip_seed=1", "with data.stride = 3 and data.clip_starts = even, which draw nothing"),
        ([*PLAIN, "--cache.local_path=null"], "cache.local_gb=5", "with cache.local_path = null"),
        (BIVDIFF, "bivdiff.outpaint=sides", "with bivdiff.task = controlnet; it applies to outpainting only"),
        (BIVDIFF, "bivdiff.canny=[1, 2]", "with bivdiff.control = files; leave it out, or set bivdiff.control canny"),
        ([*BIVDIFF, "--bivdiff.framework=fuse"], "bivdiff.alpha=0.5", "with bivdiff.framework = fuse"),
    ],
)
def test_a_typed_setting_without_effect_is_refused_in_one_line(base: list[str], typed: str, cause: str) -> None:
    with pytest.raises(UserError) as error:
        load([*base, f"--{typed}"])
    assert str(error.value).startswith(f"{typed.partition('=')[0]} = ")
    assert ": has no effect with" in str(error.value) and cause in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        [*PLAIN, "--bridge.loss_weight=noise", "--bridge.target=v"],
        [*PLAIN, "--bridge.loss_weight=uniform"],
        [*PLAIN, "--bridge.time_noise=10", "--bridge.time_noise_power=3"],
        [*DIFFUSION, "--bridge.pretrained_beta_end=0.03"],
        [*DIFFUSION, "--bridge.prior=neural", "--model.prior_condition=true"],
        [*UNET3D, "--sample.stride=2"],
        [*COGVIDEOX, "--model.patch_size=1"],
        [*PLAIN, "--sample.model_path=export", "--sample.stride=2"],  # the export may be a U-Net
        [*PLAIN, "--data.clip_starts=random", "--data.clip_seed=3"],
        [*PLAIN, "--bivdiff.outpaint=sides"],  # nothing of BIVDiff is run
        [*PLAIN, "--text.tokenizer=null"],
    ],
)
def test_a_typed_setting_with_an_effect_is_accepted(arguments: list[str]) -> None:
    load(arguments)


def said(caplog: pytest.LogCaptureFixture, *arguments: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load(arguments)
    return [record.getMessage() for record in caplog.records]


def test_a_recipes_setting_without_effect_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = said(caplog, "--recipe", "demo", "--bridge.process=diffusion", "--bridge.saf=false")
    assert line == (
        "without effect: bridge.prior = neural (recipe demo), with bridge.process = diffusion and "
        "model.prior_condition = false"
    )
    (line,) = said(caplog, "--recipe", "webvid-dynamicrafter")
    assert line.startswith("without effect: bridge.saf_edge = cogvideox (recipe webvid-videocrafter)")


def test_defaults_without_effect_are_said_with_dry_run_only(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog) == []
    (line,) = said(caplog, "--dry-run")
    assert line.startswith("defaults without effect here: ") and "bridge.saf_edge" in line


def test_several_refused_settings_are_counted() -> None:
    with pytest.raises(UserError, match=r"^bridge.saf_edge = latte: .* \(and 1 more\)$"):
        load([*PLAIN, "--bridge.saf_edge=latte", "--bridge.time_noise_power=2"])


@pytest.mark.parametrize("name", recipes())
def test_every_name_without_effect_is_a_setting(name: str) -> None:
    assert without_effect(load(["--recipe", name])[0]).keys() <= NAMES


def test_every_name_of_the_tables_is_a_setting() -> None:
    patterns = " ".join([*READ_ONLY_WITH, *READ_BY_TASKS.values()]).split()
    assert [pattern for pattern in patterns if not fnmatch.filter(NAMES, pattern)] == []
    assert {needed.partition(" ")[0] for needed in READ_ONLY_WITH.values()} <= NAMES


def test_no_command_of_a_recipe_header_is_refused() -> None:
    for path in sorted((ROOT / "jobs" / "recipes").glob("*.yaml")):
        text = path.read_text().split("run:")[0].replace("\\\n#", " ")
        for line in text.splitlines():
            _, job, arguments = line.partition(".py ")
            if job and "--recipe" in arguments:
                load(arguments.split())
