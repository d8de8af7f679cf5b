"""What is wrong with a cache is found and told; what killed jobs left is removed, and nothing else."""

import io
import json
import os
import runpy
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.verify import check_shards, find_orphans
from pipeline.settings import ROOT

HOUR = 3600.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The files that the cache's clips come from, as far as their names and sizes go."""
    for number in range(13):
        path = tmp_path / "videos" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000 + number))
    return tmp_path / "videos"


@pytest.fixture
def cache(tmp_path: Path, source: Path) -> Cache:
    """13 clips in two shards."""
    return write_cache(tiny_settings(tmp_path))


def run(name: str, cache: Cache, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """Exit status of jobs/NAME.py on the cache, in this process."""
    arguments = ["--recipe", "demo", "--data.source", "folder", "--data.path", str(Path(cache.path, "../../videos"))]
    monkeypatch.setattr("sys.argv", [name, *arguments, "--data.stride=3", "--cache.path", cache.path, *more])
    with pytest.raises(SystemExit) as ending:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    return int(ending.value.code or 0)


def tars(cache: Cache) -> list[Path]:
    return sorted(Path(cache.path, "shards").glob("*.tar"))


def problems(cache: Cache) -> list[str]:
    checked = list(check_shards(cache.path, cache.spec))
    return [finding.problem for one in checked for finding in one.findings]


def test_a_whole_cache_has_nothing_wrong(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify_cache", cache, monkeypatch) == 0
    assert "all 13 clips are as they were written" in capsys.readouterr().out
    assert json.loads(Path(cache.path, "verify.json").read_text()) == {
        "clips": 13,
        "damaged": [],
        "gone": [],
        "changed": [],
    }


def test_every_kind_of_damage_is_named(cache: Cache) -> None:
    tar, row = tars(cache)[0], cache.rows[0]
    good = {path: path.read_bytes() for path in tars(cache)}
    mine = next(path for path in tars(cache) if path.name == row["shard"])
    flipped = bytearray(good[mine])
    flipped[row["offset"] + 300] ^= 1
    mine.write_bytes(flipped)
    assert problems(cache) == ["latent.npy has another checksum than when it was written"]
    mine.write_bytes(good[mine][: len(good[mine]) // 2 - 100])
    assert any(
        "tar is unreadable" in problem or "latent.npy is not in the tar" in problem for problem in problems(cache)
    )
    mine.write_bytes(good[mine])
    assert problems(cache) == []
    tar.unlink()
    assert problems(cache) == ["the tar is gone"]
    tar.write_bytes(good[tar])
    shifted, strange = io.BytesIO(), tarfile.TarInfo("strange")
    with tarfile.open(fileobj=shifted, mode="w") as output, tarfile.open(fileobj=io.BytesIO(good[tar])) as members:
        output.addfile(strange)
        for member in members:
            output.addfile(member, members.extractfile(member))
    tar.write_bytes(shifted.getvalue())
    found = problems(cache)
    assert sum("the index says at" in problem for problem in found) >= 6
    assert "1 members that the index does not know, for example strange" in found
    part = next(Path(cache.path, "manifest").iterdir())
    part.write_bytes(part.read_bytes()[:-20])
    assert any("manifest part is unreadable" in problem for problem in problems(cache))
    assert any("the latent is float16 (2, 4, 4, 4, 4)" in p for p in misshapen(cache, good))


def misshapen(cache: Cache, good: dict[Path, bytes]) -> list[str]:
    """The problems of a cache that says its latents were of another shape."""
    for path, content in good.items():
        path.write_bytes(content)
    return problems(Cache(cache.path, replace(cache.spec, latent_shape=[16, 4, 4, 4]), cache.table, cache.rejected))


def test_damage_fails_the_job_until_it_is_repaired(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, whole = tars(cache)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    part = next(Path(cache.path, "manifest").glob(f"{damaged.name.split('-')[0]}*"))
    assert run("verify_cache", cache, monkeypatch) == 1
    said = capsys.readouterr()
    assert (
        "1 shards are damaged; verify.json there names them; add --repair" in said.err and damaged.name[:12] in said.out
    )
    assert part.exists(), "nothing is removed unasked"
    assert run("verify_cache", cache, monkeypatch, "--repair") == 1
    assert not part.exists() and "run jobs/cache_latents.py now" in capsys.readouterr().err
    assert {row["shard"] for row in open_cache(cache.path).rows} == {whole.name}
    assert run("verify_cache", cache, monkeypatch) == 0


def test_videos_that_are_gone_or_changed_are_told(
    cache: Cache, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "3.mp4").unlink()
    (source / "5.mp4").write_bytes(b"another")
    (source / "new.mp4").write_bytes(b"later")
    assert run("verify_cache", cache, monkeypatch) == 1
    assert "1 clips are of videos that are gone; 1 clips are of videos that are changed" in capsys.readouterr().err
    report = json.loads(Path(cache.path, "verify.json").read_text())
    assert [row["video"] for row in report["gone"]] == ["3.mp4"]
    assert [(row["video"], row["size"], row["size_max"]) for row in report["changed"]] == [("5.mp4", 1005, 7)]
    assert run("verify_cache", cache, monkeypatch, "--without-source") == 0


def test_gc_removes_what_killed_jobs_left_and_nothing_else(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.read_bytes() for path in Path(cache.path).rglob("*") if path.is_file()}
    left = [Path(cache.path, name) for name in ("shards/left.tar", "manifest/.a.parquet.0f.tmp", ".cache.json.1.tmp")]
    young = Path(cache.path, "shards", "young.tar")
    for path in (*left, young):
        path.write_bytes(b"half")
    for path in (*left, *kept):
        os.utime(path, (time.time() - 25 * HOUR,) * 2)
    assert run("gc_cache", cache, monkeypatch, "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(str(path) in said for path in left) and "remove 3 orphans" in said and "young" not in said
    assert all(path.exists() for path in left)
    assert run("gc_cache", cache, monkeypatch) == 0
    assert not any(path.exists() for path in left) and young.exists()
    assert {path: path.read_bytes() for path in kept} == kept


def test_gc_tells_of_committed_shards_that_are_gone(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tars(cache)[0]
    gone.unlink()
    assert run("gc_cache", cache, monkeypatch) == 1
    assert f"1 committed shards are gone, for example shards/{gone.name}" in capsys.readouterr().err
    assert len(list(Path(cache.path, "manifest").iterdir())) == 2, "the part is left, it says what is missing"
    assert find_orphans(cache.path, 0.0) == ([], [gone.name])


def test_gc_does_not_run_beside_a_caching_job(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.data.cache.lease import only_writer

    monkeypatch.setattr("pipeline.data.cache.lease.RENEW_S", 0.1)
    with only_writer(cache.path):
        assert run("gc_cache", cache, monkeypatch) == 2
    assert "is writing to this cache" in capsys.readouterr().err
