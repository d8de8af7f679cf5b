"""Clips on the node's own disk are fetched once, stay within the room, and may vanish without harm."""

import os
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.load.node_cache import NodeCache, keep_locally, make_room

LENGTH = 1000


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A stand-in for a remote file; after its deletion a range can only come from the local copy."""
    path = tmp_path / "shard.tar"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read(node_cache: NodeCache, shard: Path, numbers: range) -> list[bytes]:
    return [node_cache.read_range(str(shard), LENGTH * number, LENGTH) for number in numbers]


def test_a_range_is_fetched_once_for_all_workers_of_the_node(tmp_path: Path, shard: Path) -> None:
    first, second = (NodeCache(tmp_path / "kept", "s3://cache", 10**6, 10**4, sharers=2) for _ in range(2))
    before = read(first, shard, range(5))
    shard.unlink()
    assert read(first, shard, range(5)) == read(second, shard, range(5)) == before
    with pytest.raises(FileNotFoundError):
        read(second, shard, range(5, 6))


def test_room_is_bounded_and_the_rest_is_read_remotely(tmp_path: Path, shard: Path) -> None:
    workers = [NodeCache(tmp_path / "kept", "s3://cache", 3 * LENGTH, 10**4, sharers=2) for _ in range(2)]
    assert read(workers[0], shard, range(8)) == read(workers[1], shard, range(8))
    assert 0 < held(tmp_path / "kept") <= 3 * LENGTH
    started_again = NodeCache(tmp_path / "kept", "s3://cache", 3 * LENGTH, 10**4)
    read(started_again, shard, range(8))
    assert held(tmp_path / "kept") == 3 * LENGTH
    NodeCache(tmp_path / "kept", "s3://cache", 2 * LENGTH, 10**4)
    assert held(tmp_path / "kept") <= 2 * LENGTH, "a lower limit holds at once"


def test_the_longest_unused_caches_are_evicted_first(tmp_path: Path, shard: Path) -> None:
    folders = []
    for number, name in enumerate(("oldest", "older", "latest")):
        node_cache = NodeCache(tmp_path / "kept", name, 10 * LENGTH, 2 * LENGTH)
        read(node_cache, shard, range(2))
        os.utime(node_cache.folder, (number, number))
        folders.append(node_cache.folder)
    new = NodeCache(tmp_path / "kept", "new", 6 * LENGTH, 2 * LENGTH)
    assert [folder.exists() for folder in folders] == [False, True, True]
    read(new, shard, range(8))
    assert held(tmp_path / "kept") == 6 * LENGTH


def test_an_evicted_folder_only_costs_reading_again(tmp_path: Path, shard: Path) -> None:
    node_cache = NodeCache(tmp_path / "kept", "s3://cache", 10**6, 10**4)
    before = read(node_cache, shard, range(3))
    for path in node_cache.folder.iterdir():
        for one in path.iterdir():
            one.unlink()
        path.rmdir()
    node_cache.folder.rmdir()
    assert read(node_cache, shard, range(3)) == before


def test_at_most_half_of_the_free_disk_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "cache"
    folder.mkdir(parents=True)
    disk = os.statvfs(tmp_path)
    assert make_room(folder, 10**18, 10**18) <= 0.51 * disk.f_bavail * disk.f_frsize


def test_a_local_cache_needs_no_copy(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, f"--cache.local_path={tmp_path}/kept")
    assert keep_locally(write_cache(settings), settings.cache, 1) is None
