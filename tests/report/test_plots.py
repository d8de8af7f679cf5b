"""Loss curves are SVG that stands on a page by itself."""

import xml.etree.ElementTree as ElementTree

from pipeline.report.plots import loss_curve
from pipeline.train.report.rows import Row

ROWS: list[Row] = [{"step": float(step), "loss": 1 / step, "validation_loss": None} for step in range(1, 40)]


def test_curve_is_well_formed_and_takes_the_pages_colour() -> None:
    svg = loss_curve([*ROWS, {"step": 40.0, "loss": None, "validation_loss": 0.5}], "a")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg") and "width" not in root.attrib and root.attrib["viewBox"]
    assert "currentColor" in svg
    assert "held-out clips" in svg
    assert "<!DOCTYPE" not in svg and "<metadata" not in svg


def test_two_curves_on_one_page_share_no_ids() -> None:
    def ids(svg: str) -> set[str]:
        named = (element.attrib.get("id", "") for element in ElementTree.fromstring(svg).iter())
        return {
            name for name in named if name.startswith(("m", "p")) and any(c.isdigit() for c in name) and "_" not in name
        }

    assert ids(loss_curve(ROWS, "a")).isdisjoint(ids(loss_curve(ROWS, "b")))


def test_loss_of_zero_is_drawn() -> None:
    assert "<svg" in loss_curve([{"step": 1.0, "loss": 0.0}, {"step": 2.0, "loss": 1.0}], "zero")
