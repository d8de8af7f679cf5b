"""The Slurm script, the image and the page of clusters name things that exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.settings import ROOT, load

CLUSTER = ROOT / "cluster"


def test_slurm_script_is_shell_and_asks_for_no_more_than_ray_symmetric_run_takes() -> None:
    script = CLUSTER / "slurm.sh"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = script.read_text()
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    started = text[text.index("ray symmetric-run") :].split(" -- ")[0]
    for refused in ("--head", "--node-ip-address", "--port", "--block"):
        assert refused not in shlex.split(started.replace("\\\n", " "))


def test_slurm_script_refuses_a_job_that_is_not_there() -> None:
    done = subprocess.run(
        ["bash", "cluster/slurm.sh", "jobs/nothing.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("slurm.sh: give the job") and done.stderr.count("\n") == 1


def test_image_copies_what_exists_and_its_context_holds_it() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    sources = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"requirements.lock", "pipeline", "jobs", "ray_config.yaml"} <= set(sources)
    sent = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in sources:
        assert (ROOT / name).exists(), f"COPY {name}: no such file"
        assert name in sent, f"COPY {name}: left out by Dockerfile.dockerignore"
    assert sent == set(sources), "what is sent and not copied need not be sent"


PAGES = (CLUSTER / "README.md", ROOT / "docs" / "slow.md")


def blocks() -> list[str]:
    text = "".join(page.read_text() for page in PAGES)
    return re.findall(r"^```sh[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.splitlines()[0][:40])
def test_commands_of_the_page_are_shell_and_name_files_that_exist(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"\b(?:cluster|jobs)/[\w./-]+\.(?:yaml|py|sh)\b", block):
        assert (ROOT / name).is_file(), name


def test_machines_are_set_up_as_make_sets_up_this_one() -> None:
    """The test on three hosts uses `make`'s environment in place of the page's."""
    make = [
        line.split("install", 1)[1] for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line
    ]
    page = [line.split("install", 1)[1] for block in blocks() for line in block.splitlines() if "pip install" in line]
    assert page == [line.replace(" --quiet", "") for line in make[: len(page)]] and len(page) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_on_the_page_are_settings(page: Path) -> None:
    settings = load([])[0].model_dump()
    for section, key in re.findall(
        r"`((?:data|cache|vae|train|sample)|cluster\.(?:decode|encode|train))\.(\w+)`", page.read_text()
    ):
        place = settings
        for part in section.split("."):
            place = place[part]
        assert key in place, f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
