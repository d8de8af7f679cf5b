"""The dashboard shows metrics that exist: the pipeline's own and Ray's. test_submission.py sees them arrive."""

import json
import re

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from pipeline.runtime.metrics import METRICS
from pipeline.settings import ROOT

DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
OURS = {
    f"ray_framebridge_{name}{'_total' if kind == 'Counter' else ''}": {"run", *tags}
    for name, (kind, _, tags) in METRICS.items()
}


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "-".join(sorted(names(target["expr"]))))
def test_an_expression_asks_for_tags_that_its_metric_has(target: dict[str, str]) -> None:
    found = names(target["expr"])
    assert found
    if found <= OURS.keys():
        tags = set.intersection(*(OURS[name] for name in found))
        by = re.findall(r"by \(([^)]*)\)", target["expr"])
        assert {tag.strip() for group in by for tag in group.split(",")} <= tags
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= tags


def test_every_metric_of_the_pipeline_is_shown() -> None:
    shown = set().union(*(names(target["expr"]) for target in TARGETS))
    assert OURS.keys() <= shown
    assert {name for name in shown if name.startswith("ray_node_")} <= {f"ray_{name}" for name in METRICS_GAUGES}


def test_panels_do_not_lie_on_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
