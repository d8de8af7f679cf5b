"""Shards: the same bytes for the same clips, read by offset, checked; commit decides what exists."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.tiny_text import save_tiny_clip

from pipeline.data.cache.commit import commit
from pipeline.data.cache.info import CacheSpec, check_same, read_spec, resolve_spec, write_spec
from pipeline.data.cache.manifest import Cache, next_round, open_cache, read_manifest, read_rejected
from pipeline.data.cache.shards import CorruptShard, npy_bytes, read_latent, read_text
from pipeline.errors import UserError
from pipeline.schema import ENCODED_SCHEMA
from pipeline.settings import load


def latent(index: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=(2, 16, 4, 2, 2)).astype(np.float16)


def encoded(*indices: int, bad: tuple[int, ...] = (), reason: str = "too_short", shift: float = 0) -> pa.Table:
    """Rows of clips `indices`, of which those in `bad` could not be used; `shift`: what is added to latents."""
    rows: list[dict[str, Any]] = []
    for index in indices:
        row: dict[str, Any] = {"uri": f"/videos/{index}.mp4", "video": f"{index}.mp4", "size": 9, "split": "train"}
        row |= {"label": "A", "caption": "ein Bär", "ordinal": 0, "clips": 1, "flip": False, "attempts": 1}
        if index in bad:
            row |= {"stage": "decode", "reason": reason, "detail": "9 frames"}
        else:
            row |= {"key": f"{index:032x}", "start": 0, "stride": 3, "span": 46}
            row |= {"latent": npy_bytes(latent(index) + np.float16(shift))}
            row |= {"source_fps": 25.0, "source_frames": 50, "source_height": 72, "source_width": 96, "decoder": "pyav"}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA)


def spec(**settings: Any) -> CacheSpec:
    return CacheSpec(
        fingerprint=str(sorted(settings.items())),
        settings=settings,
        scaling_factor=0.18215,
        latent_shape=[16, 4, 2, 2],
        text_shape=None,
        classes=["A"],
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_clips_give_the_same_files_in_any_order(tmp_path: Path) -> None:
    assert commit(str(tmp_path / "a"), encoded(1, 2, 3, 4, bad=(2,)))[:2] == (3, ["too_short"])
    commit(str(tmp_path / "b"), encoded(4, 3, 2, 1, bad=(2,)))
    commit(str(tmp_path / "b"), encoded(2, 1, 3, 4, bad=(2,)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 3, "a tar, its manifest part, and a list of rejected clips"


def test_offsets_agree_with_the_tar_and_webdataset_reads_it(tmp_path: Path) -> None:
    commit(str(tmp_path), encoded(1, 2, 3))
    table = read_manifest(str(tmp_path))
    (shard,) = (tmp_path / "shards").iterdir()
    with tarfile.open(shard) as tar:
        members = {member.name: member for member in tar.getmembers()}
    for row in table.to_pylist():
        member = members[f"{row['key']}.latent.npy"]
        assert (member.offset_data, member.size, member.mtime) == (row["offset"], row["length"], 0)
        assert np.array_equal(read_latent(str(tmp_path), row), latent(int(row["key"], 16)))
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == table["key"].to_pylist()
    assert np.array_equal(np.load(io.BytesIO(samples[0]["latent.npy"])), latent(1))
    assert b"uri" not in samples[0]["json"] and b"/videos" not in samples[0]["json"]


def test_embeddings_lie_beside_latents_and_are_checked(tmp_path: Path) -> None:
    rows = encoded(1, 2, 3)
    texts = [np.random.default_rng(index).normal(size=(7, 5)).astype(np.float16) for index in range(3)]
    column = pa.array([npy_bytes(text) for text in texts], pa.large_binary())
    commit(str(tmp_path), rows.set_column(rows.schema.get_field_index("text"), "text", column))
    manifest = read_manifest(str(tmp_path)).to_pylist()
    (shard,) = (tmp_path / "shards").iterdir()
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    for row, text, sample in zip(manifest, texts, samples, strict=True):
        found = read_text(str(tmp_path), row)
        assert found is not None and np.array_equal(found, text)
        assert np.array_equal(np.load(io.BytesIO(sample["text.npy"])), text)
        assert np.array_equal(read_latent(str(tmp_path), row), latent(int(row["key"], 16)))
    content = bytearray(shard.read_bytes())
    content[manifest[1]["text_offset"] + 140] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptShard, match=manifest[1]["key"]):
        read_text(str(tmp_path), manifest[1])
    assert np.array_equal(read_latent(str(tmp_path), manifest[1]), latent(2))


def test_a_cache_without_text_says_so(tmp_path: Path) -> None:
    commit(str(tmp_path), encoded(1))
    (row,) = read_manifest(str(tmp_path)).to_pylist()
    assert read_text(str(tmp_path), row) is None


def test_the_text_encoder_is_part_of_what_a_cache_is_made_with(tmp_path: Path) -> None:
    first, other = (save_tiny_clip(tmp_path / str(seed), seed) for seed in range(2))

    def described(*more: str) -> CacheSpec:
        settings = load(["--recipe", "demo", *more])[0]
        return resolve_spec(settings.data, settings.vae, settings.text)

    without, clip = described(), described("--text.path", first, "--text.max_length", "8")
    assert (without.text_shape, clip.text_shape) == (None, [8, 16])
    demo = load(["--recipe", "demo"])[0]
    shorter = demo.text.model_copy(update={"max_length": 5})
    assert without.fingerprint == resolve_spec(demo.data, demo.vae, shorter).fingerprint, "nothing is embedded"
    for changed, expected in [
        (["--text.path", other, "--text.max_length", "8"], "text.path .hash of its files"),
        (["--text.path", first, "--text.max_length", "9"], "text.max_length: cache has 8, settings say 9"),
        (["--text.path", first, "--text.max_length", "8", "--text.layer", "-2"], "text.layer: cache has -1"),
        ([], "text.path .hash of its files.: cache has .*, settings say None"),
    ]:
        with pytest.raises(UserError, match=expected):
            check_same("cache", clip, described(*changed))


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    commit(str(tmp_path), encoded(1, 2))
    row = read_manifest(str(tmp_path)).to_pylist()[1]
    (shard,) = (tmp_path / "shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[row["offset"] + 200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptShard, match=rf"{row['key']}.*{row['shard']}"):
        read_latent(str(tmp_path), row)
    shard.write_bytes(content[: row["offset"] + 100])
    with pytest.raises(CorruptShard, match=row["key"]):
        read_latent(str(tmp_path), row)
    shard.unlink()
    with pytest.raises(CorruptShard, match=row["shard"]):
        read_latent(str(tmp_path), row)


def test_a_tar_without_manifest_part_does_not_exist(tmp_path: Path) -> None:
    commit(str(tmp_path), encoded(1, 2))
    commit(str(tmp_path), encoded(3))
    write_spec(str(tmp_path), spec())
    for part in (tmp_path / "manifest").iterdir():
        if pq.read_table(part).num_rows == 2:
            part.unlink()
    assert [row["video"] for row in open_cache(str(tmp_path)).rows] == ["3.mp4"]


def test_a_clip_committed_twice_counts_once(tmp_path: Path) -> None:
    commit(str(tmp_path), encoded(1, 2, 9, bad=(9,)))
    commit(str(tmp_path), encoded(2, 3, 9, bad=(9,)))
    assert [int(key, 16) for key in read_manifest(str(tmp_path))["key"].to_pylist()] == [1, 2, 3]
    assert read_rejected(str(tmp_path))["video"].to_pylist() == ["9.mp4"]


def test_other_latents_of_the_same_clips_never_replace_those_that_a_manifest_names(tmp_path: Path) -> None:
    """As when a GPU rounds a clip otherwise in another batch, and the commit before was, or was not, completed."""
    cache = str(tmp_path)
    commit(cache, encoded(1, 2))
    (first,) = (tmp_path / "shards").iterdir()
    before = contents(tmp_path)
    commit(cache, encoded(1, 2, shift=0.5))
    assert contents(tmp_path) == before, "committed is committed"
    (part,) = (tmp_path / "manifest").iterdir()
    part.unlink()
    commit(cache, encoded(1, 2, shift=0.5))
    assert first.exists() and len(list((tmp_path / "shards").iterdir())) == 2
    rows = read_manifest(cache).to_pylist()
    assert len(rows) == 2 and all(row["shard"] != first.name for row in rows)
    assert np.array_equal(read_latent(cache, rows[0]), latent(1) + np.float16(0.5))


def test_a_rejected_clip_that_was_tried_again_counts_once_as_what_it_became(tmp_path: Path) -> None:
    cache = str(tmp_path)
    assert next_round(cache) == 1
    commit(cache, encoded(1, 7, 8, 9, bad=(7, 8, 9), reason="timeout"), next_round(cache))
    commit(cache, encoded(6, bad=(6,), reason="corrupt"), next_round(cache))
    assert next_round(cache) == 3
    for round_number in range(3, 12):  # as many as make ten come after nine
        commit(cache, encoded(8, bad=(8,), reason=f"round {round_number}"), round_number)
    commit(cache, encoded(9), next_round(cache))
    write_spec(cache, spec())
    rejected = open_cache(cache).rejected.to_pylist()
    assert [(row["video"], row["reason"]) for row in rejected] == [
        ("6.mp4", "corrupt"),
        ("7.mp4", "timeout"),
        ("8.mp4", "round 11"),
    ]


def test_other_settings_are_refused_with_each_difference() -> None:
    with pytest.raises(UserError) as error:
        check_same("there", spec(a=3, b=1, c="x" * 64), spec(a=4, b=1, c="y" * 64))
    assert "a: cache has 3, settings say 4" in str(error.value) and "--cache.path" in str(error.value)
    assert "b:" not in str(error.value) and "\n" not in str(error.value)
    check_same("there", spec(a=3), spec(a=3))


def test_no_cache_and_an_empty_one_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cache there"):
        open_cache(str(tmp_path))
    write_spec(str(tmp_path), spec())
    with pytest.raises(UserError, match="holds no clips yet"):
        open_cache(str(tmp_path))
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_cache(str(tmp_path))
    (tmp_path / "cache.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="version 99, expected 1"):
        open_cache(str(tmp_path))


def test_a_description_that_lacks_a_key_is_refused_with_file_key_and_remedy(tmp_path: Path) -> None:
    write_spec(str(tmp_path), spec())
    content = json.loads((tmp_path / "cache.json").read_text())
    del content["scaling_factor"]
    (tmp_path / "cache.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cache.json: has no key scaling_factor; restore the file, or .*--cache.path"):
        read_spec(str(tmp_path))


def test_classes_of_earlier_runs_stay(tmp_path: Path) -> None:
    write_spec(str(tmp_path), spec())
    write_spec(str(tmp_path), replace(spec(), classes=["B"]))
    found = read_spec(str(tmp_path))
    assert found is not None and found.classes == ["A", "B"]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="latents")
    yield "s3://latents/run/cache"
    server.stop()


def test_a_cache_on_s3_is_the_same_cache(s3: str, tmp_path: Path) -> None:
    for path in (s3, str(tmp_path)):
        commit(path, encoded(1, 2, 3, bad=(3,)))
        write_spec(path, spec())
    remote, local = open_cache(s3), open_cache(str(tmp_path))
    assert isinstance(remote, Cache) and remote.rows == local.rows and remote.spec == local.spec
    assert remote.rejected == local.rejected
    assert np.array_equal(read_latent(s3, remote.rows[1]), latent(2))
