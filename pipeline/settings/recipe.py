"""Recipes: YAML files of settings in jobs/recipes, each of which may name others that it builds on.

`base: NAME`, or `base: [NAME, ...]`, at the top of a recipe applies those first. ray_config.yaml lies below all of them
and is not named.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .layers import Layer
from .names import current_recipe

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE if (PACKAGE / "ray_config.yaml").is_file() else PACKAGE.parent  # a wheel holds the defaults inside
RECIPES = ROOT / "jobs" / "recipes"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, name in enumerate(names):
            if name in names[:index]:
                mark = next(key.start_mark for key, _ in reversed(node.value) if key.value == name)
                raise yaml.constructor.ConstructorError(None, None, f"{name} is there twice", mark)
        return super().construct_mapping(node, deep)


def recipes() -> list[str]:
    """Names of the recipes in jobs/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is sections. Raises UserError naming the file and line."""
    return _sections(path, _parse(path))


def read_recipe(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The names that a recipe builds on, and its own settings. Raises UserError."""
    loaded = _parse(path)
    base = loaded.pop("base", []) if isinstance(loaded, dict) else []
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: base = {base!r}: expected the name of a recipe, or a list of names")
    return names, _sections(path, loaded)


def recipe_layers(named: Sequence[str]) -> list[Layer]:
    """Layers of the recipes in the order in which they apply: each after those it builds on, and none twice.

    Raises UserError for a name that is no recipe, and for recipes that build on each other in a circle.
    """
    named = [current_recipe(name) for name in named]
    layers: dict[str, Layer] = {}
    for name in named:
        if name not in recipes():
            raise UserError(f"--recipe {name}: no such recipe; choose one of {', '.join(recipes())}")
        _apply(name, named, layers, ())
    return list(layers.values())


def _apply(name: str, named: Sequence[str], layers: dict[str, Layer], above: tuple[str, ...]) -> None:
    """Add `name` to `layers`, after its bases; `above` are the recipes that led to it."""
    if name in above:
        circle = " -> ".join([*above[above.index(name) :], name])
        raise UserError(f"recipe {name} builds on itself ({circle}); take `base` out of one of them")
    if name in layers:
        return
    path = RECIPES / f"{name}.yaml"
    bases, tree = read_recipe(path)
    for base in map(current_recipe, bases):
        if base not in recipes():
            raise UserError(f"{path}: base = {base}: no such recipe; choose one of {', '.join(recipes())}")
        _apply(base, named, layers, (*above, name))
    layers[name] = Layer("recipe" if name in named else "base", name, tree)


def _sections(path: Path, loaded: Any) -> dict[str, Any]:
    """`loaded`, if it is a mapping of names to mappings. Raises UserError."""
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, dict) for k, v in loaded.items()):
        raise UserError(f"{path}: expected sections with keys (data:, train:, ...), as in ray_config.yaml")
    return loaded


def _parse(path: Path) -> Any:
    """The content of a YAML file, {} if it is empty. Raises UserError."""
    try:
        loaded = _Loader(path.read_text(encoding="utf-8")).get_single_data()
        return {} if loaded is None else loaded
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{path}{where}: not valid YAML ({problem}); compare with ray_config.yaml") from error
