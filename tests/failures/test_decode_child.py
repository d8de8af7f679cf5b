"""Decoders that crash, exit, hang or lose their parent: each costs its video only, and leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import treacherous
from helpers.video_files import number, write_video

from pipeline.data.decode import stage
from pipeline.data.decode.child import IsolatedDecoder
from pipeline.data.decode.fetch import DecodeFailure
from pipeline.schema import PLAN_SCHEMA, PlannedClip
from pipeline.settings import ROOT, DataSettings, load


def data(**changes: Any) -> DataSettings:
    return load(["--recipe", "demo"])[0].data.model_copy(update={"stride": 3, "height": 72, "width": 96, **changes})


def planned(path: Path) -> PlannedClip:
    return PlannedClip(
        uri=str(path), video=path.name, size=1, split="train", label="", caption="", ordinal=0, clips=1, flip=False
    )


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedDecoder]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    isolated = IsolatedDecoder(treacherous.decode)
    yield isolated
    isolated.close()


def test_a_crash_an_exit_and_a_hang_cost_their_video_only(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    good = planned(write_video(tmp_path / "good.mp4", 50))
    children = set()
    for name, reason, detail in [
        ("segfault", "crashed", "SIGSEGV"),
        ("exit", "crashed", "status 0"),
        ("hang", "timeout", "data.decode_timeout_s = 2 s"),
        ("bug", "crashed", "status 1"),
        ("too_large", "too_large", "on purpose"),
        ("eats", "out_of_memory", "data.decode_memory_mb = 256"),
        ("eats_in_a_library", "out_of_memory", "data.decode_memory_mb = 256"),
        ("killed 9", "killed", "SIGKILL"),
    ]:
        with pytest.raises(DecodeFailure, match=detail) as failure:
            decoder.decode(planned(tmp_path / name), data(decode_timeout_s=2, decode_memory_mb=256))
        assert failure.value.reason == reason
        frames, _ = decoder.decode(good, data())
        assert [number(frame) for frame in frames] == list(range(2, 48, 3))
        children.add(decoder.pid)
    assert len(children) == 6, "a typed failure keeps its child, and so does memory that was given back"
    decoder.close()
    assert not any(alive(child) for child in children)


def test_a_child_killed_between_two_clips_costs_none(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    good = planned(write_video(tmp_path / "good.mp4", 50))
    decoder.decode(good, data())
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    time.sleep(0.2)
    decoder.decode(good, data())


def test_a_child_killed_while_it_starts_costs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolated = IsolatedDecoder()
    spawn = isolated.spawn
    killed: list[int] = []

    def spawn_and_kill() -> Any:
        pipe = spawn()
        if len(killed) < 5:
            assert isolated.pid is not None
            killed.append(isolated.pid)
            os.kill(killed[-1], signal.SIGKILL)
        return pipe

    monkeypatch.setattr(isolated, "spawn", spawn_and_kill)
    isolated.decode(planned(write_video(tmp_path / "good.mp4", 50)), data())
    assert len(killed) == 5
    isolated.close()


def test_a_child_that_leaks_is_replaced_before_it_costs_a_clip(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    children = set()
    for index in range(3):
        decoder.decode(
            planned(write_video(tmp_path / f"leaks {index}", 50, container="mp4")), data(decode_memory_mb=256)
        )
        children.add(decoder.pid)
    assert children == {None}


def test_clips_come_in_order_with_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"), prepend=os.pathsep)
    isolated = IsolatedDecoder(treacherous.decode)
    monkeypatch.setattr(stage, "isolated_decoder", isolated)
    names = ["good", "segfault", "killed 2", "exit", "hang", "killed 3", "good again"]
    videos = [planned(write_video(tmp_path / name, 50, container="mp4")) for name in names]
    chosen = data(decode_timeout_s=3, decoder="pyav")
    rows = pa.concat_tables(stage.decode_clips(pa.Table.from_pylist(videos, schema=PLAN_SCHEMA), chosen)).to_pylist()
    assert [row["video"] for row in rows] == names
    assert [row["reason"] for row in rows] == [None, "crashed", None, "crashed", "timeout", "killed", None]
    assert [row["attempts"] for row in rows] == [1, 1, 3, 1, 1, 3, 1]
    good = [np.frombuffer(row["frames"], np.uint8) for row in rows if row["frames"]]
    assert len(good) == 3 and all(np.array_equal(frames, good[0]) for frames in good)
    assert [number(frame) for frame in good[0].reshape(16, 72, 96, 3)] == list(range(2, 48, 3))
    isolated.close()


def test_a_batch_that_is_given_up_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolated = IsolatedDecoder()
    monkeypatch.setattr(stage, "isolated_decoder", isolated)
    videos = [planned(write_video(tmp_path / f"{length}.mp4", length)) for length in (50, 60, 70)]
    batch = pa.Table.from_pylist(videos, schema=PLAN_SCHEMA)
    given_up: Any = stage.decode_clips(batch, data())
    next(given_up)
    given_up.close()
    rows = pa.concat_tables(stage.decode_clips(batch, data())).to_pylist()
    assert [row["source_frames"] for row in rows] == [50, 60, 70]
    isolated.close()


@pytest.mark.parametrize("video", ["idle", "hang"])
def test_a_child_dies_with_its_parent(video: str) -> None:
    script = f"""
import sys
from helpers import treacherous
from pipeline.settings import load
from pipeline.data.decode.child import IsolatedDecoder
isolated = IsolatedDecoder(treacherous.decode)
data = load(["--recipe", "demo"])[0].data.model_copy(update={{"decode_timeout_s": 1000.0}})
isolated.start()
print(isolated.pid, flush=True)
if {video!r} == "hang":
    isolated.decode({{"video": "hang"}}, data)
sys.stdin.read()
"""
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "tests"]))
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert parent.stdout is not None and parent.stdin is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
    parent.stdin.close()
    parent.stdout.close()


def alive(pid: int | None) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
