"""README.md says what benchmarks/costs.py computes."""

from pathlib import Path
from types import ModuleType

import pytest
from helpers.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def costs() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "costs.py")


def test_readme_has_the_computed_table(costs: ModuleType) -> None:
    assert costs.table() in (ROOT / "README.md").read_text()


def test_pages_have_the_computed_cost_of_caching(costs: ModuleType) -> None:
    flops, hours = costs.caching().removeprefix("Caching: ").split(" a clip of 16 x 256 x 256, ")
    assert f"takes {flops}, " in (ROOT / "docs" / "costs.md").read_text()
    for page in ("README.md", "docs/costs.md"):
        assert hours.rstrip(".") in (ROOT / page).read_text().replace("\n", " ")


def test_every_training_recipe_of_the_papers_is_in_the_table(costs: ModuleType) -> None:
    named = {path.stem for path in (ROOT / "jobs" / "recipes").glob("*.yaml")}
    assert {name for name in named if name.startswith(("ucf101-", "latte-", "webvid-"))} == costs.RECIPES.keys() - {""}
