"""Names that an earlier version had: each is accepted for one version, with a line that says what became of it.

Names on users' disks (`made_with.json`, an export's config.json) stay as they were written; `without_removed` is for
those who compare them.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import UserError

log = logging.getLogger(__name__)

# Old dotted name -> new dotted name
RENAMED_SETTINGS: dict[str, str] = {}
# Old name -> new name
RENAMED_RECIPES: dict[str, str] = {}
# Dotted name -> why it is gone. None of them ever changed a result.
REMOVED_SETTINGS: dict[str, str] = {
    "prior.model.image_condition": "the neural prior always reads the image latent, and nothing else",
    "prior.model.prior_condition": "the neural prior is not shown its own output",
}


def current_recipe(name: str) -> str:
    """The present name of a recipe. Logs one line where it was renamed."""
    if name not in RENAMED_RECIPES:
        return name
    log.warning("recipe %s is called %s now; this version still accepts the old name", name, RENAMED_RECIPES[name])
    return RENAMED_RECIPES[name]


def with_current_names(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """A copy of `tree` under present names and without removed settings; `source` says where it came from.

    Logs one line for each old name. Raises UserError where a setting is given under its old and its new name.
    """
    for key, reason in REMOVED_SETTINGS.items():
        if _has(tree, key):
            tree, _ = _without(tree, key.split("."))
            log.warning("%s (%s): has no effect and is no setting any more: %s; leave it out", key, source, reason)
    for key, new in RENAMED_SETTINGS.items():
        if _has(tree, key):
            if _has(tree, new):
                raise UserError(f"{key} ({source}): is called {new} now, which is set there too; leave {key} out")
            tree, value = _without(tree, key.split("."))
            tree = _with(tree, new.split("."), value)
            log.warning("%s (%s): is called %s now; this version still accepts the old name", key, source, new)
    return tree


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by dotted names, without removed settings, so that records of two versions compare equal."""
    return {key: value for key, value in values.items() if key not in REMOVED_SETTINGS}


def _has(tree: dict[str, Any], key: str) -> bool:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _without(tree: dict[str, Any], path: list[str]) -> tuple[dict[str, Any], Any]:
    """A copy of `tree` without the value at `path`, and that value; sections that end up empty are dropped."""
    first, *rest = path
    others = {name: value for name, value in tree.items() if name != first}
    if not rest:
        return others, tree[first]
    inner, value = _without(tree[first], rest)
    return (tree | {first: inner} if inner else others), value


def _with(tree: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**tree, first: _with(tree.get(first) or {}, rest, value) if rest else value}
