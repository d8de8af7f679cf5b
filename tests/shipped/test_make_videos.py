"""jobs/make_videos.py names what it would make."""

import subprocess
import sys
from pathlib import Path

from pipeline.settings import ROOT


def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    command = [sys.executable, "jobs/make_videos.py", "--folder", str(folder), "--videos", "3", "--dry-run"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == f"Plan: 3 videos, seed 0, in {folder}\n"
    assert not folder.exists()
