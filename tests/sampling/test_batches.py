"""The plan of a job, one batch of it, and an actor without models: all without Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.media import encode_mp4
from pipeline.sampling.batches import BatchActor, ClipPlan, Work, make_clip_batch, run_plan
from pipeline.sampling.items import BatchResult, Rejection
from pipeline.settings import ActorResources, load_settings
from pipeline.storage.files import write_bytes, write_json

ONE_CPU = ActorResources(actors=1, num_cpus=1, num_gpus=0, labels={})


def plan_of(folder: Path, **fingerprints: str) -> ClipPlan[dict[str, Any]]:
    """Two batches of two items: a and b, c and d."""
    items = [{"key": key} for key in "abcd"]
    prints = {key: fingerprints.get(key, "-") for key in "abcd"}
    return ClipPlan("sample.images = X", str(folder), [items[:2], items[2:]], [], {}, prints)


def work(items: list[dict[str, Any]]) -> BatchResult:
    """Make every item but d."""
    made = [({"key": item["key"]}, {"generated.mp4": b"clip"}) for item in items if item["key"] != "d"]
    return made, [Rejection("d", "is gone") for item in items if item["key"] == "d"]


def test_clip_is_done_when_its_record_and_video_are_there_and_made_as_now(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, a="as now", b="as now", c="as now")
    for key, fingerprint in {"a": "as now", "b": "otherwise", "c": "as now"}.items():
        write_json(f"{tmp_path}/{key}.json", {"fingerprint": fingerprint})
        if key != "c":
            write_bytes(f"{tmp_path}/{key}.generated.mp4", b"clip")
    assert plan.done == {"a": {"fingerprint": "as now"}}
    assert plan.pending == 3 and plan.unfinished == plan.batches
    assert plan.remade == "\n1 of them were made with other weights or settings and are made again"


def test_batch_without_anything_to_do_is_finished(tmp_path: Path) -> None:
    for key in "ab":
        write_json(f"{tmp_path}/{key}.json", {"fingerprint": "-"})
        write_bytes(f"{tmp_path}/{key}.generated.mp4", b"clip")
    plan = plan_of(tmp_path)
    assert plan.unfinished == [plan.batches[1]] and not plan.remade


def test_batch_writes_files_and_records_with_fingerprints(tmp_path: Path) -> None:
    records, rejected = make_clip_batch(work, [{"key": "c"}, {"key": "d"}], {"c": "1", "d": "2"}, str(tmp_path))
    assert records == [{"key": "c", "fingerprint": "1"}] and rejected == [Rejection("d", "is gone")]
    assert json.loads((tmp_path / "c.json").read_text()) == records[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.generated.mp4", "c.json"]


def test_actor_answers_with_records_or_with_what_is_wrong_with_its_models(tmp_path: Path) -> None:
    def broken(device: str) -> Work:
        raise UserError("no such model")

    content = json.dumps([[{"key": "c"}], {"c": "1"}])
    for build, expected in (
        (lambda device: work, [[{"key": "c", "fingerprint": "1"}], [], ""]),
        (broken, [[], [], "no such model"]),
    ):
        answer = BatchActor(build, ONE_CPU, str(tmp_path))({"batch": np.array([content])})["answer"]
        assert [json.loads(one) for one in answer] == [expected]


def never(*arguments: object) -> Any:
    raise AssertionError("there is nothing to make")


def test_summary_of_an_earlier_run_with_the_finished_entries_stands(tmp_path: Path) -> None:
    summary = {"fingerprint": "f", "count": 3, "items": ["a", "b", "c"]}
    write_json(f"{tmp_path}/summary.json", summary)
    finished = {"fingerprint": "f", "count": 3}
    found = run_plan(plan_of(tmp_path), never, finished, never, 8, "run", load_settings("demo").cluster)
    assert found == summary | {"made_this_run": 0}


def test_summary_is_written_anew_when_an_entry_differs(tmp_path: Path) -> None:
    for key in "abcd":
        write_json(f"{tmp_path}/{key}.json", {"key": key, "fingerprint": "-"})
        write_bytes(f"{tmp_path}/{key}.generated.mp4", encode_mp4(np.zeros((4, 16, 16, 3), np.uint8), 8))
    write_json(f"{tmp_path}/summary.json", {"fingerprint": "f", "count": 3, "seconds": 100.0})
    finished = {"fingerprint": "f", "count": 4}
    cluster = load_settings("demo").cluster
    found = run_plan(plan_of(tmp_path), never, finished, lambda records: {"own": len(records)}, 8, "run", cluster)
    assert found.pop("made_this_run") == 0 and found["seconds"] > 100
    assert found == json.loads((tmp_path / "summary.json").read_text())
    assert (found["own"], found["count"], found["items"], found["fingerprint"]) == (4, 4, list("abcd"), "f")
    assert (tmp_path / "grid.mp4").exists() and (tmp_path / "grid.png").exists()
