"""Layers of settings: YAML files and recipes, read under present names and merged key by key.

    ray_config.yaml  <  recipes, each after those it builds on  <  --section.key value

`base: NAME`, or `base: [NAME, ...]`, at the top of a recipe names what it builds on. A name of an earlier version is
accepted for one version, with a line that says what became of it. Records on users' disks (`made_with.json`, an
export's config.json) keep the names that they were written with; `without_removed` makes records of two versions
comparable.
"""

import copy
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict

from ..errors import UserError

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
ROOT = _PACKAGE if (_PACKAGE / "ray_config.yaml").is_file() else _PACKAGE.parent  # a wheel holds the defaults inside
RECIPES = ROOT / "jobs" / "recipes"
RENAMED: dict[str, str] = {}  # old name of a setting (dotted) or of a recipe -> new name
REMOVED = {  # dotted name of a setting -> why it is gone; none of them ever changed a result
    "prior.model.image_condition": "the neural prior always reads the image latent, and nothing else",
    "prior.model.prior_condition": "the neural prior does not read its own output",
}
ABSENT = object()


@dataclass
class Layer:
    """Settings from one place, `source` ("recipe demo"), under present names and without removed settings.

    Logs one line for each old name. Raises UserError where a setting is given under its old and its new name.
    """

    source: str
    tree: dict[str, Any]

    def __post_init__(self) -> None:
        self.tree = copy.deepcopy(self.tree)
        for key, reason in REMOVED.items():
            if _pop(self.tree, key) is not ABSENT:
                log.warning("%s (%s): was removed and has no effect: %s; leave it out", key, self.source, reason)
        for key, new in RENAMED.items():
            if (value := _pop(self.tree, key)) is not ABSENT:
                if lookup(self.tree, new) is not ABSENT:
                    raise UserError(f"{key} ({self.source}): is called {new} now, which is set too; leave {key} out")
                log.warning("%s (%s): is called %s now; this version still accepts the old name", key, self.source, new)
                self.tree = merge([self.tree, nested(new, value)])


class _Merged(BaseSettings):
    """Trees of settings, merged by pydantic-settings and not yet checked."""

    model_config = SettingsConfigDict(extra="allow", case_sensitive=True, protected_namespaces=())

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
        """A source for each tree, the last one first, as it wins; the environment and secrets are not read."""
        return tuple(InitSettingsSource(settings_cls, tree) for tree in reversed(init_settings.init_kwargs["trees"]))


def merge(trees: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One tree of all; later ones win, key by key."""
    return dict(_Merged(trees=list(trees)).model_extra or {})  # type: ignore[call-arg]


def nested(key: str, value: Any) -> dict[str, Any]:
    """("train.steps", 5) -> {"train": {"steps": 5}}."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def lookup(tree: Any, key: str) -> Any:
    """The value at a dotted name; ABSENT where there is none."""
    for part in key.split("."):
        tree = tree.get(part, ABSENT) if isinstance(tree, dict) else ABSENT
    return tree


def shown(value: Any) -> str:
    """The value as YAML and the command line have it: null and not None."""
    return value if isinstance(value, str) else json.dumps(value, default=repr)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in names[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is sections. Raises UserError naming the file and line."""
    bases, tree = read_recipe(path)
    if bases:
        raise UserError(f"{path}: base = {shown(bases)}: only recipes build on others; name them with --recipe")
    return tree


def read_recipe(path: Path) -> tuple[list[str], dict[str, Any]]:
    """The names that a recipe builds on, and its own settings. Raises UserError naming the file and line."""
    try:
        loaded = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or type(error).__name__
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({problem}); compare with ray_config.yaml") from error
    loaded = {} if loaded is None else loaded
    base = loaded.pop("base", []) if isinstance(loaded, dict) else []
    bases = [base] if isinstance(base, str) else base
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise UserError(f"{path}: base = {shown(base)}: expected the name of a recipe, or a list of names")
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, dict) for k, v in loaded.items()):
        raise UserError(f"{path}: expected sections with keys (data:, train:, ...), as in ray_config.yaml")
    return bases, loaded


def recipes() -> list[str]:
    """Names of the recipes in jobs/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_layers(names: Sequence[str]) -> list[Layer]:
    """Layers of the recipes in the order in which they apply: each after those it builds on, and none twice.

    Logs one line for each old name. Raises UserError for a name that is no recipe, and for recipes that build on each
    other in a circle.
    """
    layers: dict[str, Layer] = {}

    def apply(name: str, asked: str, above: tuple[str, ...] = ()) -> None:
        """Add `name` to `layers`, after its bases; `above` are the recipes that led to it, `asked` says where."""
        if name in RENAMED:
            log.warning("recipe %s is called %s now; this version still accepts the old name", name, RENAMED[name])
            name = RENAMED[name]
        if name not in recipes():
            raise UserError(f"{asked} {name}: no such recipe; choose one of {', '.join(recipes())}")
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            raise UserError(f"recipe {name} builds on itself ({circle}); take `base` out of one of them")
        if name not in layers:
            path = RECIPES / f"{name}.yaml"
            bases, tree = read_recipe(path)
            for base in bases:
                apply(base, f"{path}: base =", (*above, name))
            layers[name] = Layer(f"recipe {name}", tree)

    for name in names:
        apply(name, "--recipe")
    return list(layers.values())


def without_removed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by dotted names, without removed settings, so that records of two versions compare equal."""
    return {key: value for key, value in values.items() if key not in REMOVED}


def _pop(tree: Any, key: str) -> Any:
    """Take the value at a dotted name out of `tree`, and sections that are empty then; ABSENT if it is not there."""
    first, _, rest = key.partition(".")
    inner = tree.get(first, ABSENT) if isinstance(tree, dict) else ABSENT
    value = _pop(inner, rest) if rest else inner
    if value is not ABSENT and not (rest and inner):
        del tree[first]
    return value
