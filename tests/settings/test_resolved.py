"""Every recipe resolves to the settings that were recorded in resolved.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import load, recipes, without_removed

RECORDED = yaml.safe_load((Path(__file__).parent / "resolved.yaml").read_text())
DEFAULTS: dict[str, Any] = without_removed(RECORDED.pop("ray_config.yaml"))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"steps": 5}} -> {"train.steps": 5}; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found


def resolved(*names: str) -> dict[str, Any]:
    arguments = [word for name in names for word in ("--recipe", name)]
    return flat(load(arguments)[0].model_dump(mode="json"))


def expected(changes: dict[str, Any]) -> dict[str, Any]:
    replaced = {key for key in DEFAULTS for name in changes if name.startswith(f"{key}.")}  # `labels: {}`, now filled
    return {key: value for key, value in DEFAULTS.items() if key not in replaced} | without_removed(changes)


def test_defaults_are_those_recorded() -> None:
    assert resolved() == DEFAULTS


@pytest.mark.parametrize("stack", RECORDED)
def test_stack_of_recipes_resolves_as_recorded(stack: str) -> None:
    assert resolved(*stack.split(" + ")) == expected(RECORDED[stack])


def test_every_recipe_is_recorded() -> None:
    assert {name for stack in RECORDED for name in stack.split(" + ")} == set(recipes())
