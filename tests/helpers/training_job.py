"""Run jobs/finetune.py in its own process, on a cluster of several nodes in this process, for tests of failures."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.settings import ROOT
from pipeline.train.plan import CHECKPOINTS


class TrainingJob:
    """Start the job and add its output to a log; `said` waits for a line after the last one that it found."""

    def __init__(self, arguments: list[str], address: str, log: Path) -> None:
        self.log = log
        log.touch()
        self.seen = len(log.read_text())
        names = {name: value for name, value in os.environ.items() if name != "RAY_JOB_CONFIG_JSON_ENV_VAR"}
        # a checkpoint counts when Ray Train has asked for it: here sooner than every two seconds
        names |= {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "finetune.py"), *arguments],
                env=names,
                stdout=stream,
                stderr=stream,
            )

    def until(self, there: Callable[[], Any], what: str, seconds: float = 400) -> Any:
        """Wait for a true value of `there`, and give it."""
        deadline = time.monotonic() + seconds
        while not (found := there()):
            assert self.process.poll() is None and time.monotonic() < deadline, f"{what}: {self.log.read_text()}"
            time.sleep(0.05)
        return found

    def said(self, pattern: str, seconds: float = 400) -> re.Match[str]:
        found = self.until(lambda: re.compile(pattern).search(self.log.read_text(), self.seen), pattern, seconds)
        assert isinstance(found, re.Match)
        self.seen = found.end()
        return found

    def end(self) -> int:
        """The exit status."""
        return self.process.wait(timeout=400)


def workers() -> list[psutil.Process]:
    """The Ray Train workers of the clusters that this process started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended in the meantime
            if "RayTrainWorker" in "".join(process.cmdline()[:1]):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def checkpoints(run_folder: str) -> set[str]:
    """Those that Ray Train has committed, from what it would resume by."""
    snapshot = Path(run_folder, CHECKPOINTS, "checkpoint_manager_snapshot.json")
    return set(re.findall(r"checkpoint_[\d_.-]+\d", snapshot.read_text())) if snapshot.exists() else set()
