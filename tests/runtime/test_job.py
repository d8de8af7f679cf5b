"""Every job ends with its own line, whatever its workers print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.runtime.job import run_job
from pipeline.settings import ROOT, Settings

TALKATIVE_JOB = """
import time
import ray
from pipeline.runtime.job import run_job
from pipeline.errors import UserError

@ray.remote
class Talker:
    def talk(self):
        while True:
            print("a line of a worker", flush=True)
            time.sleep(0.01)

def job(settings):
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    talker = Talker.remote()
    talker.talk.remote()
    time.sleep(2)
    raise UserError("the remedy")

run_job(job, lambda *_: "", "")
"""


@pytest.mark.ray
def test_remedy_is_the_last_line_while_workers_go_on_printing(tmp_path: Path) -> None:
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE_JOB)
    line = [
        sys.executable,
        str(script),
        "--recipe",
        "demo",
        "--run.storage",
        str(tmp_path),
        "--data.path",
        str(tmp_path),
    ]
    done = subprocess.run(
        line,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "a line of a worker" in done.stdout
    assert done.stdout.splitlines()[-1] == "talkative.py: the remedy"


@pytest.mark.ray
def test_a_job_leaves_the_ray_of_its_caller_alone(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def job(_: Settings) -> None:
        raise UserError("refused")

    folder = str(tmp_path)
    monkeypatch.setattr(sys, "argv", ["job.py", "--recipe=demo", f"--run.storage={folder}", f"--data.path={folder}"])
    with pytest.raises(SystemExit) as ended:
        run_job(job, lambda _: "", "")
    assert ended.value.code == 2 and ray.is_initialized()
