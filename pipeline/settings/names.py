"""Names that an earlier version had: each is accepted for one version, with a line that says what became of it.

Names on users' disks (`made_with.json`, an export's config.json) stay as they were written; `without_removed` is for
those who compare them.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .layers import merge_trees, nested

log = logging.getLogger(__name__)

_ABSENT = object()

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
    tree = copy.deepcopy(tree)
    for key, reason in REMOVED_SETTINGS.items():
        if _pop(tree, key) is not _ABSENT:
            log.warning("%s (%s): has no effect and is no setting any more: %s; leave it out", key, source, reason)
    for key, new in RENAMED_SETTINGS.items():
        if (value := _pop(tree, key)) is not _ABSENT:
            if _pop(copy.deepcopy(tree), new) is not _ABSENT:
                raise UserError(f"{key} ({source}): is called {new} now, which is set there too; leave {key} out")
            tree = merge_trees(tree, nested(new, value))
            log.warning("%s (%s): is called %s now; this version still accepts the old name", key, source, new)
    return tree


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by dotted names, without removed settings, so that records of two versions compare equal."""
    return {key: value for key, value in values.items() if key not in REMOVED_SETTINGS}


def _pop(tree: Any, key: str) -> Any:
    """Take the value at a dotted name out of `tree`, and sections that are empty then; _ABSENT if it is not there."""
    first, _, rest = key.partition(".")
    if not isinstance(tree, dict) or first not in tree:
        return _ABSENT
    value = _pop(tree[first], rest) if rest else tree.pop(first)
    if rest and value is not _ABSENT and not tree[first]:
        del tree[first]
    return value
