"""Label selectors mean what Ray means by them, and a stage that no cluster can hold is refused in one line."""

from typing import Any

import pytest
from ray._private.label_utils import validate_label_selector

from pipeline.errors import UserError
from pipeline.runtime.placement import check_room, fits, places
from pipeline.settings import load

NODES: list[dict[str, Any]] = [
    {"Alive": True, "Resources": {"CPU": 0.0}, "Labels": {"stage": "head"}},
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}, "Labels": {"stage": "train"}},
    {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 4.0}, "Labels": {"stage": "train"}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}, "Labels": {"stage": "train"}},
]


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("encode", ["encode"]),
        ("!encode", ["train", None]),
        ("in(encode, train)", ["encode", "train"]),
        ("!in(encode,train)", [None]),
    ],
)
def test_selector_chooses_the_nodes_that_ray_chooses(selector: str, chosen: list[str | None]) -> None:
    assert validate_label_selector({"stage": selector}) is None
    load([f"--cluster.train.labels={{stage: '{selector}'}}"])
    found = [
        stage for stage in ("encode", "train", None) if fits({"stage": stage} if stage else {}, {"stage": selector})
    ]
    assert found == chosen


@pytest.mark.parametrize("wrong", ["{stage: 'in()'}", "{stage: '!!a'}", "{'a b': c}", "{stage: ''}", "{stage: 1}"])
def test_wrong_selector_is_refused_with_the_settings(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^cluster.train.labels"):
        load([f"--cluster.train.labels={wrong}"])


def test_node_holds_as_many_as_its_scarcest_resource_allows() -> None:
    assert places({"CPU": 9, "GPU": 2}, {"CPU": 4, "GPU": 1}) == 2
    assert places({"CPU": 9}, {"CPU": 4, "GPU": 1}) == 0
    assert places({"CPU": 1}, {}) is None


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes that Ray lists; tests that run jobs use those of a real cluster."""
    import ray

    found = [{**node, "Labels": dict(node["Labels"])} for node in NODES]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    return found


def test_room_is_counted_node_by_node_among_those_selected(nodes: list[dict[str, Any]]) -> None:
    train = load(["--cluster.train.labels={stage: train}"])[0].cluster.train
    check_room("train", train, 2, "two")  # 4 CPUs and a GPU each: two on the first node, none on the second
    with pytest.raises(UserError) as error:
        check_room("train", train, 8, "cluster.train.workers = 8")
    assert str(error.value) == (
        "cluster.train.workers = 8 with cluster.train.num_cpus = 4 and cluster.train.num_gpus = 1 each do not fit the "
        "Ray cluster, which has 10 CPU and 6 GPU on 2 node(s) with cluster.train.labels = {'stage': 'train'} and no "
        "autoscaler: room for 2; lower them, change the labels, or add nodes"
    )


def test_label_that_no_node_has_is_refused_in_one_line(nodes: list[dict[str, Any]]) -> None:
    encode = load(["--cluster.encode.labels={stage: encoed}"])[0].cluster.encode
    with pytest.raises(UserError, match=r"0 GPU on 0 node\(s\) with cluster.encode.labels = {'stage': 'encoed'}"):
        check_room("encode", encode, 1, "the encoding actors")


def test_job_waits_where_an_autoscaler_may_add_nodes(
    nodes: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    nodes[0]["Labels"]["ray.io/node-group"] = "head"
    with caplog.at_level("INFO"):
        check_room("train", load([])[0].cluster.train, 8, "cluster.train.workers = 8")
    assert "train: room for 2 of 8 now; waiting for the autoscaler" in caplog.text
