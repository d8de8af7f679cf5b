"""The whole road in miniature, through Ray's job submission as `make demo` goes, and what a second run makes of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import ROOT
from pipeline.data.synthetic import CLASSES, make_dataset
from pipeline.local_cluster import local_cluster

SMALL = [
    "--train.steps",
    "4",
    "--prior.train.steps",
    "4",
    "--train.warmup_steps",
    "1",
    "--prior.train.warmup_steps",
    "1",
]
SMALL += ["--train.log_every", "2", "--prior.train.log_every", "2", "--sample.steps", "2", "--sample.count", "2"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    # as `make` sets it up: the tests' interpreter first on the path, no cluster named, the package importable
    names = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{names.get('PATH', '')}"
    return {**names, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def submit(job: str, line: list[str], environment: dict[str, str]) -> tuple[int, str]:
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{job}.py", *line]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_videos_come_out_as_a_report_and_a_second_run_finds_all_done(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", environment["PATH"])  # local_cluster calls `ray`
    make_dataset(str(tmp_path / "videos"), videos=32, seed=7, frames=48, test_share=0.5)
    line = ["--recipe", "demo", "--run.storage", str(tmp_path), "--run.name", "road"]
    line += ["--data.path", str(tmp_path / "videos"), *SMALL]
    run = tmp_path / "road"
    with local_cluster(environment, lambda title, text: None) as reached:
        for job in ("cache_latents", "train_prior", "finetune", "sample", "report"):
            status, text = submit(job, line, reached)
            assert status == 0, f"{job}: {text}"
        status, text = submit("finetune", line, reached)
        assert status == 0
        assert "nothing to do" in text
    summary = json.loads((run / "summary.json").read_text())
    assert summary["held_out_inputs"] == 2
    assert summary["prior_latent_error"] > 0
    assert {"cache", "prior", "finetune", "samples"} <= set(summary["timings"])
    cache = json.loads((run / "cache" / "summary.json").read_text())
    assert (cache["planned"], cache["cached"], cache["rejected"]) == (32, 32, 0)
    assert json.loads((run / "cache" / "cache.json").read_text())["classes"] == sorted(CLASSES)
    page = (run / "report.html").read_text()
    assert page.count("<video") >= 6
