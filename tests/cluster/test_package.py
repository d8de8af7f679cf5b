"""`ray job submit --working-dir .` uploads everything that a job needs, and little else."""

import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from pipeline.settings import ROOT

LIMIT = 5_500_000  # bytes; the shipped weights are 4.1 MB of them, and Ray does not compress


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    return target


def test_package_is_small(package: Path) -> None:
    largest = sorted(zipfile.ZipFile(package).infolist(), key=lambda member: -member.file_size)[:3]
    named = ", ".join(f"{member.filename}: {member.file_size}" for member in largest)
    size = package.stat().st_size
    assert size < LIMIT, f"{size} bytes ({named}); name in .rayignore what no job needs"


def test_package_has_what_jobs_need_and_no_more(package: Path) -> None:
    names = {member.filename.split("/", 1)[0] for member in zipfile.ZipFile(package).infolist()}
    assert names >= {"jobs", "pipeline", "experiments", "ray_config.yaml"}
    left_out = {".git", ".venv", "benchmarks", "cluster", "docs", "runs", "tests"}
    assert not names & left_out
    inside = set(zipfile.ZipFile(package).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    assert {name for name in wanted if "__pycache__" not in name} <= inside
