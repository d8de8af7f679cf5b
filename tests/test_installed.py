"""Installed from a wheel the package is called framebridge, is whole, and lives beside another package `pipeline`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.settings import ROOT

NEEDED = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "ray_config.yaml", "pipeline", "jobs", "experiments")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, unpacked = folder / "source", folder / "site"
    source.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-c", f"import setuptools.build_meta as m; m.build_wheel({str(folder)!r})"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def run(script: str, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_wheel_holds_one_package_with_everything_in_it(site: Path) -> None:
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"framebridge"}
    ours = {path.relative_to(ROOT / "pipeline") for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    ours = {path for path in ours if "__pycache__" not in path.parts}
    ours |= {path.relative_to(ROOT) for path in (ROOT / "jobs" / "recipes").glob("*.yaml")} | {Path("ray_config.yaml")}
    installed = {path.relative_to(site / "framebridge") for path in (site / "framebridge").rglob("*") if path.is_file()}
    assert installed == ours


def test_installed_package_works_beside_a_foreign_pipeline(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("FOREIGN = True\n")
    script = """
import pipeline
assert pipeline.FOREIGN
from framebridge.settings import load, recipes
from framebridge.data.decode.child import IsolatedDecoder
from framebridge.data.plan.clips import plan_clips
from framebridge.models.files.paths import local_path
from framebridge.shipped.synthetic import make_dataset
assert "demo" in recipes()
make_dataset("videos", 2, seed=0, frames=20)
data = load(["--recipe", "demo", "--data.path", "videos", "--data.frames", "4"])[0].data
clip = next(iter(plan_clips(data)))
decoder = IsolatedDecoder()  # starts a process that imports the package under this name
frames, span = decoder.decode(clip, data)
decoder.close()
assert frames.shape == (4, data.height, data.width, 3) and span["key"]
assert local_path("shipped:vae") is not None
import sys
assert sys.modules["pipeline"].FOREIGN and not [name for name in sys.modules if name.startswith("pipeline.")]
print("works")
"""
    done = run(script, tmp_path, site)
    assert done.stdout == "works\n", done.stderr


@pytest.mark.parametrize(("first", "second"), [("pipeline", "framebridge"), ("framebridge", "pipeline")])
def test_both_names_in_one_process_are_one_clear_error(site: Path, tmp_path: Path, first: str, second: str) -> None:
    done = run(f"import {first}.errors\nimport {second}.errors", tmp_path, site, ROOT)
    assert done.returncode == 1
    expected = f"ImportError: {second}: this process has imported the same package as {first}; import it under one name"
    assert expected in done.stderr.splitlines()[-1]
