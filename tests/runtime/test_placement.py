"""Where stages may run: label selectors as Ray reads them, and a clear line where a cluster can never hold a stage."""

from typing import Any

import pytest
from ray._private.label_utils import validate_label_selector

from pipeline.errors import UserError
from pipeline.runtime.placement import check_room, fits, places
from pipeline.settings import load

NODES = [
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
def test_selector_chooses_as_ray_does(selector: str, chosen: list[str | None]) -> None:
    assert validate_label_selector({"stage": selector}) is None
    load([f"--cluster.train.labels={{stage: '{selector}'}}"])
    found = [
        stage for stage in ("encode", "train", None) if fits({"stage": stage} if stage else {}, {"stage": selector})
    ]
    assert found == chosen


@pytest.mark.parametrize("wrong", ["{stage: 'in()'}", "{stage: '!!a'}", "{'a b': c}", "{stage: ''}", "{stage: 1}"])
def test_wrong_selector_is_found_in_settings(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^cluster.train.labels"):
        load([f"--cluster.train.labels={wrong}"])


def test_a_node_holds_as_many_as_its_scarcest_resource() -> None:
    assert places({"CPU": 9, "GPU": 2}, {"CPU": 4, "GPU": 1}) == 2
    assert places({"CPU": 9}, {"CPU": 4, "GPU": 1}) == 0
    assert places({"CPU": 1}, {}) is None


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes that Ray tells of; those of a real cluster are in the tests that run jobs."""
    import ray

    found = [{**node, "Labels": dict(node["Labels"])} for node in NODES]  # type: ignore[dict-item]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    return found


def test_room_is_counted_node_by_node_among_those_selected(nodes: list[dict[str, Any]]) -> None:
    settings = load(["--cluster.train.labels={stage: train}"])[0]
    check_room(settings, "train", 2, "two")  # 4 CPUs and a GPU each: two on the first node, none on the second
    with pytest.raises(UserError) as error:
        check_room(settings, "train", 8, "cluster.train.workers = 8")
    assert str(error.value) == (
        "cluster.train.workers = 8 with cluster.train.num_cpus = 4 and cluster.train.num_gpus = 1 each do not fit the Ray "
        "cluster, which has 10 CPU and 6 GPU on 2 node(s) with cluster.train.labels = {'stage': 'train'} and no autoscaler: "
        "room for 2; lower them, change the labels, or add nodes"
    )


def test_a_label_that_no_node_has_is_a_clear_line(nodes: list[dict[str, Any]]) -> None:
    settings = load(["--cluster.encode.labels={stage: encoed}"])[0]
    with pytest.raises(UserError, match=r"0 GPU on 0 node\(s\) with cluster.encode.labels = {'stage': 'encoed'}"):
        check_room(settings, "encode", 1, "the encoding actors")


def test_where_an_autoscaler_may_add_nodes_it_is_waited_for(
    nodes: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    nodes[0]["Labels"]["ray.io/node-group"] = "head"
    with caplog.at_level("INFO"):
        check_room(load([])[0], "train", 8, "cluster.train.workers = 8")
    assert "train: room for 2 of 8 now; waiting for the autoscaler" in caplog.text
