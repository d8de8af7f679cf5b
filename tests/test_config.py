"""Settings: the file is complete, precedence holds, and every mistake is one line that names the remedy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config import RECIPES, ROOT, build, load, read_yaml, recipes, to_yaml
from pipeline.errors import UserError

BASE = read_yaml(ROOT / "ray_config.yaml")


def test_base_file_holds_every_setting_and_describes_the_real_job() -> None:
    settings = build([BASE])
    assert (settings.data.frames, settings.data.height, settings.data.width) == (16, 256, 256)
    assert settings.model_dump(mode="json").keys() == BASE.keys()


def test_every_key_of_the_base_file_is_explained_where_its_name_first_appears() -> None:
    lines = (ROOT / "ray_config.yaml").read_text().splitlines()
    first: dict[str, str] = {}
    for line in lines:
        if match := re.match(r" +(\w+): ", line):
            first.setdefault(match[1], line)
    bare = [name for name, line in first.items() if "#" not in line]
    assert not bare


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid_and_hold_only_what_differs(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    stack = ["--recipe", "demo", "--recipe", name] if "On top of demo" in text else ["--recipe", name]
    settings, _ = load(stack)
    assert yaml.safe_load(to_yaml(settings)) == settings.model_dump(mode="json")
    assert text.startswith("#"), "a recipe says what it is for"


def test_command_line_wins_over_recipe_and_recipe_over_file() -> None:
    assert load([])[0].train.steps == BASE["train"]["steps"]
    assert load(["--recipe", "demo"])[0].train.steps == read_yaml(RECIPES / "demo.yaml")["train"]["steps"]
    settings, options = load(["--recipe", "demo", "--train.steps", "25", "--data.max_videos=null", "--dry-run"])
    assert settings.train.steps == 25
    assert settings.data.max_videos is None
    assert options.dry_run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.stepz", "5"], "train.stepz = 5: unknown setting; did you mean train.steps?"),
        (["--train.steps", "many"], "train.steps = 'many': input should be a valid integer"),
        (["--train.steps", "0"], "train.steps = 0: input should be greater than 0"),
        (["--data.height", "100"], "use 96 or 104"),
        (
            ["--model.unet3d.model_channels", "100"],
            "model.unet3d.model_channels = 100 is no multiple of its group norms' 32",
        ),
        (["--model.backbone", "unet3d"], "model.image_condition = frame: model.backbone = unet3d takes channels"),
        (["--model.backbone", "unet3d", "--model.image_condition=channels"], "is conditioned on text; set text.path"),
        (["--data.source", "youtube"], "'webdataset' or 'manifest'"),
        (
            ["--data.stride", "[6, 1]"],
            "data.stride = [6, 1]: expected a whole number from 1, or a range such as [1, 6]",
        ),
        (["--data.stride", "0"], "data.stride = 0: expected a whole number from 1"),
        (["--train.global_batch", "5"], "leaves some of cluster.train.workers = 8 without a clip; use at least 8"),
        (["--cluster.train.workers", "[4, 2]"], "give the smaller number first"),
        (["--train.optimizer", "muon"], "set train.zero_stage 0, or train.optimizer adamw"),
        (["--bridge.saf", "true"], "set train.init"),
        (["--bridge.beta0", "60"], "bridge.beta0 = 60.0 exceeds bridge.beta1 = 50.0"),
        (["--bridge.pretrained_beta_end", "0.00001"], "at most pretrained_beta_end = 1e-05"),
        (
            ["--bridge.process", "diffusion", "--bridge.pretrained_zero_terminal_snr", "true"],
            "set bridge.target v or z0",
        ),
        (["--bridge.process", "diffusion", "--bridge.loss_weight", "noise"], "with process diffusion set uniform"),
        (["--recipe", "demo", "--recipe", "teacher", "--bridge.time_noise", "2"], "does not show; set null"),
        (["--sample.order", "2"], "set sample.order 1 or sample.sampler dbim"),
        (["--sample.sampler", "ode_first_order", "--sample.eta", "0.5"], "set sample.eta 0"),
        (["--model.image_condition", "none"], "leaves a bridge without its image"),
        (["--model.size", "null"], "model.hidden_size, model.depth, model.num_heads must be set"),
        (["--model.depth", "4"], "already fixes depth"),
        (["--prior.model.depth", "4"], "prior.model.size = S already fixes depth"),
        (["--recipe", "nothing"], "no such recipe; choose one of ablation, bivdiff-controlnet-canny, "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["train.steps=5"], "settings are --SECTION.KEY VALUE"),
        (["--train.steps"], "a value must follow"),
        (["--run.name", "../up"], "run.name = '../up'"),
        (["--run", "5"], "settings are --SECTION.KEY VALUE"),
    ],
)
def test_mistakes_are_one_line_naming_key_value_and_remedy(arguments: list[str], expected: str) -> None:
    with pytest.raises(UserError) as error:
        load(arguments)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["data: [", "- a list", "data: 5", "\x00"])
def test_an_unreadable_config_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        load(["--config", str(path)])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    lacking = {**BASE, "train": {k: v for k, v in BASE["train"].items() if k != "steps"}}
    with pytest.raises(UserError, match=r"^train.steps: not set"):
        build([lacking])


JOBS = (
    "bivdiff",
    "cache_latents",
    "inspect_cache",
    "train_prior",
    "finetune",
    "sample",
    "evaluate",
    "ablate",
    "report",
)


@pytest.mark.parametrize("job", JOBS)
def test_jobs_exit_2_with_one_line_and_no_traceback(job: str) -> None:
    result = subprocess.run(
        [sys.executable, f"jobs/{job}.py", "--train.stepz", "5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"{job}.py: train.stepz = 5: unknown setting")
    assert "Traceback" not in result.stderr
