"""A small ablation through real Ray, DeepSpeed and the VAE: numbers, page, and a second start."""

import csv
import json
import logging
from pathlib import Path

import pytest
from helpers.tiny_models import write_cache

from experiments.ablation import protocol, tables
from experiments.ablation.protocol import SCRATCH
from experiments.ablation.run import make_plan, plan_ablation, run_ablation
from pipeline.errors import UserError
from pipeline.settings import Settings, load
from pipeline.shipped.synthetic import make_dataset

SMALL = {
    "ablate.experiments": "[priors]",
    "ablate.videos": 16,
    "ablate.clips": 8,
    "ablate.sampler_clips": 4,
    "ablate.seeds": 1,
    "ablate.bootstrap": 10,
    "prior.model.hidden_size": 16,
    "prior.model.depth": 2,
    "prior.train.steps": 2,
    "prior.train.warmup_steps": 1,
    "prior.train.global_batch": 4,
    "sample.steps": 2,
}


def small(folder: Path, *more: str) -> Settings:
    lines = [f"--{key}={value}" for key, value in {**SMALL, "run.storage": folder}.items()]
    return load(["--recipe", "demo", "--recipe", "ablation", *lines, *more])[0]


@pytest.mark.ray
@pytest.mark.long
def test_a_second_start_makes_only_what_is_missing(
    tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two of the six models of Table 5, and a cache that is there: the same code in a third of the time
    for place in (protocol, tables):
        monkeypatch.setattr(place, "SCRATCH", {name: SCRATCH[name] for name in ("bridge", "bridge-np")})
    settings = small(tmp_path)
    make_dataset(str(tmp_path / "ablation" / "videos"), 16, 2, test_share=0.5)
    write_cache(make_plan(settings).settings)
    assert "3 models (3 to train), 2 measurements (2 to do)" in plan_ablation(settings)
    result = run_ablation(settings)
    folder = tmp_path / "ablation" / "ablation"
    assert {one["model"] for one in result["cells"]} == {"bridge", "bridge-np"}
    assert all(0 < one["fd"]["value"] < 1e9 for one in result["cells"])
    assert [one["claim"][0] for one in result["claims"]] == ["4"]
    text = (folder / "results.md").read_text()
    assert "| bridge |" in text and "| bridge-np |" in text and "FrameBridge-NP below replicated prior" in text
    table = list(csv.DictReader((folder / "clips.csv").open()))
    assert len(table) == 2 * 8 and table[0].keys() >= {"model", "seed", "latent_error", "feature_0"}
    assert len({row["prior_error"] for row in table}) == 16, "the bridges start from different priors, clip by clip"
    table = list(csv.DictReader((folder / "measurements.csv").open()))
    distances = {one["model"]: one["fd_by_seed"][0] for one in result["cells"]}
    assert {row["model"]: float(row["fd"]) for row in table} == pytest.approx(distances, rel=1e-4)

    lost = folder / "measured" / "bridge-s0-step2--2-8.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    assert [one.key for one in make_plan(settings).measured if one.key not in make_plan(settings).done] == [lost.stem]
    caplog.set_level(logging.INFO, "ablate")
    run_ablation(settings)
    assert "1 of 1 tasks" in caplog.text and "bridge-s0-step2--2-8" in caplog.text
    again = json.loads(lost.read_text())
    assert {**again, "seconds": 0} == {**before, "seconds": 0}

    with pytest.raises(UserError, match="holds an ablation with another prior; set it alike"):
        make_plan(small(tmp_path, "--prior.train.steps", "3"))


def test_missing_requirements_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a shared folder"):
        make_plan(small(tmp_path, "--run.storage", "s3://bucket/runs"))
    with pytest.raises(UserError, match=r"evaluate\.detector = null: the ablation needs it"):
        make_plan(small(tmp_path, "--evaluate.detector", "null"))
