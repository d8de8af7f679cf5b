"""Two jobs, one cache: the second stops, unless the first is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.cache import lease
from pipeline.data.cache.lease import Lease, only_writer
from pipeline.errors import JobFailed, UserError
from pipeline.settings import ROOT

HOLDER = """
import sys, time
from pipeline.data.cache import lease
lease.RENEW_S = lease.SETTLE_S = 0.1
with lease.only_writer(sys.argv[1]) as held:
    print("held", flush=True)
    while True:
        time.sleep(0.05)
        held.check()
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RENEW_S": 0.1, "SETTLE_S": 0.1, "EXPIRY_S": 2.0}.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the cache at `tmp_path`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def change(path: Path, **fields: Any) -> None:
    (path / "lock.json").write_text(json.dumps({**json.loads((path / "lock.json").read_text()), **fields}))


def test_the_second_of_two_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    with only_writer(str(tmp_path)):
        with pytest.raises(
            UserError, match=rf"process {os.getpid()} on .* is writing to this cache; wait .*--cache.path"
        ):
            Lease(str(tmp_path)).take()
        with pytest.raises(UserError, match="is writing to this cache"), only_writer(str(tmp_path)):
            pass
    assert not any(tmp_path.iterdir()), "nothing is left of it"
    with only_writer(str(tmp_path)) as held:
        held.check()


def test_another_process_is_refused_while_it_lives_and_replaced_at_once_when_killed(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"process {other.pid} on"):
        Lease(str(tmp_path)).take()
    other.kill()
    other.wait()
    started = time.monotonic()
    with only_writer(str(tmp_path)):
        assert time.monotonic() - started < lease.EXPIRY_S


def test_a_killed_owner_elsewhere_is_replaced_when_its_lease_has_ended(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    other.kill()
    other.wait()
    change(tmp_path, process="", host="elsewhere")
    started = time.monotonic()
    with only_writer(str(tmp_path)):
        assert time.monotonic() - started > lease.EXPIRY_S


def test_an_owner_that_was_paused_too_long_stops_when_it_wakes(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.send_signal(signal.SIGSTOP)
    with only_writer(str(tmp_path)) as held:
        other.send_signal(signal.SIGCONT)
        _, errors = other.communicate(timeout=30)
        assert other.returncode == 1 and "JobFailed" in errors and "took this cache over" in errors
        held.check()
        time.sleep(0.3)
        assert (tmp_path / "lock.json").exists(), "it did not take the other's lock away"


def test_of_two_that_take_it_at_once_one_remains(tmp_path: Path) -> None:
    first, second = Lease(str(tmp_path)), Lease(str(tmp_path))
    first.take()
    lease.write_json(f"{tmp_path}/lock.json", second.record)  # as if both had found none
    with pytest.raises(JobFailed, match="took this cache over"):
        first.keep()
        first.check()
