"""What a cache has of a plan, without opening a video."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.cache.commit import commit
from pipeline.data.cache.progress import CacheProgress, cache_progress, counts_of, tally
from pipeline.data.plan.clips import plan_table
from pipeline.schema import ENCODED_SCHEMA, PLAN_SCHEMA
from pipeline.settings import DataSettings

VIDEOS = 100


def plan(folder: Path, data: DataSettings, **changes: Any) -> pa.Table:
    rows = "".join(f"{index:03d}.mp4,{1000 + index}\n" for index in range(VIDEOS))
    (folder / "list.csv").write_text("uri,size\n" + rows)
    source = {"source": "manifest", "path": str(folder / "list.csv"), "annotations": None}
    return plan_table(data.model_copy(update=source | changes))


def put(cache: Path, clips: pa.Table, reason: str | None = None, round_number: int = 1) -> None:
    """Commit the clips, or that they were rejected."""
    rows = clips.to_pylist()
    for row in rows:
        row |= {"attempts": 1, "decoder": "pyav"}
        if reason is None:
            row |= {"key": f"{row['video']}-{row['ordinal']}-{row['flip']}", "latent": b"latent"}
        else:
            row |= {"stage": "decode", "reason": reason, "detail": ""}
    commit(str(cache), pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA), round_number)


def names(table: pa.Table) -> list[str]:
    return [f"{row['video'][:3]}/{row['ordinal']}{'f' * row['flip']}" for row in table.to_pylist()]


@pytest.fixture
def data() -> DataSettings:
    from pipeline.settings import load

    return load([])[0].data


def test_each_clip_is_in_one_table_in_the_plans_order(tmp_path: Path, data: DataSettings) -> None:
    clips = plan(tmp_path, data)
    cache = tmp_path / "cache"
    for start in (60, 0, 20):
        put(cache, clips.slice(start, 20))
    put(cache, clips.slice(75, 10), "timeout")  # of which five are cached: they came right
    put(cache, clips.slice(85, 5), "timeout")
    put(cache, clips.slice(85, 3), "corrupt", round_number=2)
    progress = cache_progress(clips, str(cache))
    assert progress.planned == VIDEOS and progress.cached.num_rows == 60
    assert names(progress.rejected) == [f"{index:03d}/0" for index in range(80, 90)]
    assert tally(progress.rejected["reason"]) == {"timeout": 7, "corrupt": 3}
    assert names(progress.pending) == [f"{index:03d}/0" for index in [*range(40, 60), *range(90, 100)]]
    assert progress.pending.schema == PLAN_SCHEMA
    counts = counts_of(str(cache), progress)
    assert (counts["planned"], counts["cached"], counts["rejected"], counts["shards"]) == (100, 60, 10, 3)
    assert sum(counts["splits"].values()) == 60 and counts["decoders"] == {"pyav": 60}
    assert counts["bytes"] == 60 * len(b"latent")


def test_size_ordinal_and_variant_tell_clips_apart(tmp_path: Path, data: DataSettings) -> None:
    clips = plan(tmp_path, data, flip=True, clips_per_video=2, holdout_fraction=0.0)
    cache = tmp_path / "cache"
    assert clips.num_rows == 4 * VIDEOS and names(clips.slice(0, 4)) == ["000/0", "000/0f", "000/1", "000/1f"]
    put(cache, clips.slice(1, 1))
    put(cache, clips.slice(4, 4))
    progress = cache_progress(clips, str(cache))
    assert progress.cached.num_rows == 5
    assert names(progress.pending.slice(0, 4)) == ["000/0", "000/1", "000/1f", "002/0"]
    changed = clips.set_column(2, "size", pa.array([7] * clips.num_rows, pa.int64()))
    assert cache_progress(changed, str(cache)).cached.num_rows == 0


def test_a_clip_committed_twice_is_counted_once(tmp_path: Path, data: DataSettings) -> None:
    clips = plan(tmp_path, data)
    put(tmp_path / "cache", clips.slice(0, 10))
    put(tmp_path / "cache", clips.slice(5, 10))
    progress = cache_progress(clips, str(tmp_path / "cache"))
    counts = counts_of(str(tmp_path / "cache"), progress)
    assert counts["cached"] == 15 == sum(counts["decoders"].values()) and counts["bytes"] == 15 * len(b"latent")


def test_an_empty_cache_leaves_the_plan_as_it_is(tmp_path: Path, data: DataSettings) -> None:
    clips = plan(tmp_path, data)
    progress = cache_progress(clips, str(tmp_path / "none"))
    assert isinstance(progress, CacheProgress) and progress.pending is clips, "without a copy of its memory"
    assert counts_of(str(tmp_path / "none"), progress)["bytes"] == 0
