"""ray_config.yaml is complete, later layers win, and every mistake is one line that names the remedy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.settings import RECIPES, ROOT, build, load, parse_overrides, read_yaml

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


def test_resolved_settings_are_yaml_of_the_same_settings() -> None:
    settings, _ = load([])
    assert yaml.safe_load(settings.to_yaml()) == settings.model_dump(mode="json")


def test_command_line_wins_over_recipe_and_recipe_over_file() -> None:
    assert load([])[0].train.steps == BASE["train"]["steps"]
    assert load(["--recipe", "demo"])[0].train.steps == read_yaml(RECIPES / "demo.yaml")["train"]["steps"] == 300
    settings, flags = load(["--recipe", "demo", "--train.steps", "25", "--data.max_videos=null", "--dry-run"])
    assert settings.train.steps == 25
    assert settings.data.max_videos is None
    assert flags == {"dry_run": True}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.stepz", "5"], "train.stepz = 5: unknown setting; did you mean train.steps?"),
        (["--model.unet3d.model_chanels", "5"], "unknown setting; did you mean model.unet3d.model_channels?"),
        (["--train.steps", "many"], "train.steps = many: input should be a valid integer"),
        (["--train.steps", "0"], "train.steps = 0: input should be greater than 0"),
        (["--data.height", "100"], "use 96 or 104"),
        (
            ["--model.unet3d.model_channels", "100"],
            "model.unet3d.model_channels = 100: input should be a multiple of 32; see the comment",
        ),
        (["--model.backbone", "unet3d"], "model.image_condition = frame: model.backbone = unet3d takes channels"),
        (["--model.backbone", "unet3d", "--model.image_condition=channels"], "is conditioned on text; set text.path"),
        (["--data.source", "youtube"], "'webdataset' or 'manifest'"),
        (
            ["--data.stride", "[6, 1]"],
            "data.stride = [6, 1]: expected a whole number from 1, or a range with the smaller number first, such as",
        ),
        (["--data.stride", "0"], "data.stride = 0: expected a whole number from 1"),
        (["--train.global_batch", "5"], "leaves some of cluster.train.workers = 8 without a clip; use at least 8"),
        (["--cluster.train.workers", "[4, 2]"], "cluster.train.workers = [4, 2]: expected a whole number from 1"),
        (["--cluster.train.workers", "all"], "cluster.train.workers = all: expected a whole number from 1, or a range"),
        (["--bivdiff.alpha", "3"], "bivdiff.alpha = 3: input should be less than or equal to 1; see the comment at"),
        (["--run.track", "[x]"], "run.track = x: input should be 'wandb' or 'mlflow'; see the comment at run.track in"),
        (["--train.optimizer", "muon"], "set train.zero_stage 0, or train.optimizer adamw"),
        (["--bridge.saf", "true"], "set train.init"),
        (["--bridge.beta0", "60"], "bridge.beta0 = 60.0 exceeds bridge.beta1 = 50.0"),
        (["--bridge.pretrained_beta_end", "0.00001"], "exceeds pretrained_beta_end = 1e-05"),
        (
            ["--bridge.process", "diffusion", "--bridge.pretrained_zero_terminal_snr", "true"],
            "set bridge.target v or z0",
        ),
        (["--bridge.process", "diffusion", "--bridge.loss_weight", "noise"], "with process diffusion set uniform"),
        (["--recipe", "teacher", "--bridge.time_noise", "2"], "does not show; set it null"),
        (["--sample.order", "2"], "set sample.order 1, or sampler dbim and eta 0"),
        (["--sample.sampler", "ode_first_order", "--sample.eta", "0.5"], "set sample.eta 0"),
        (["--model.image_condition", "none"], "leaves a bridge without its image"),
        (["--model.size", "null"], "model.hidden_size, model.depth, model.num_heads must be set"),
        (["--model.depth", "4"], "already fixes depth"),
        (["--prior.model.depth", "4"], "prior.model.size = S already fixes depth; set prior.model.size null"),
        (["--prior.train.optimizer", "muon"], "set prior.train.zero_stage 0, or prior.train.optimizer adamw"),
        (["--prior.train.steps", "many"], "prior.train.steps = many: input should be a valid integer"),
        (["--run.storage", "null"], "run.storage = null: input should be a valid string"),
        (["--recipe", "nothing"], "no such recipe; choose one of ablation, bivdiff-controlnet-canny, "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read (No such file or directory)"),
        (["train.steps=5"], "settings are --SECTION.KEY VALUE"),
        (["--train.steps"], "a value must follow"),
        (["--run.name", "../up"], "run.name = ../up: expected letters, digits, '.', '_' and '-'"),
        (["--cluster.encode.labels.stage", "-x"], "cluster.encode.labels = -x: expected letters, digits, '.', '_' and"),
        (["--run", "5"], "settings are --SECTION.KEY VALUE"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_remedy(arguments: list[str], expected: str) -> None:
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


def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("train:\n  steps: 5\n  steps: 6\n")
    with pytest.raises(UserError, match=r"twice.yaml line 3: not valid YAML \(steps is there twice\)"):
        load(["--config", str(path)])


def test_a_mistake_that_prior_inherits_is_counted_once() -> None:
    with pytest.raises(UserError) as error:
        load(["--train.micro_batch", "0"])
    assert str(error.value).startswith("train.micro_batch = 0: ") and "more)" not in str(error.value)


def test_values_on_the_command_line_are_yaml() -> None:
    arguments = [
        "--data.stride",
        "[1, 6]",
        "--cluster.decode.labels={stage: decode}",
        "--run.seed=7",
        "--text.path=null",
    ]
    assert parse_overrides(arguments) == {
        "data": {"stride": [1, 6]},
        "cluster": {"decode": {"labels": {"stage": "decode"}}},
        "run": {"seed": 7},
        "text": {"path": None},
    }


def test_environment_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAIN", '{"steps": 5}'), ("train", '{"steps": 5}'), ("RUN__SEED", "7")):
        monkeypatch.setenv(name, value)
    settings, _ = load([])
    assert (settings.train.steps, settings.run.seed) == (BASE["train"]["steps"], BASE["run"]["seed"])


def test_a_missing_key_is_named() -> None:
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
        [sys.executable, f"jobs/{job}.py", "--train.stepz", "5"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"{job}.py: train.stepz = 5: unknown setting")
    assert "Traceback" not in result.stderr
