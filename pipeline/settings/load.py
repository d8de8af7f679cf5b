"""Settings from ray_config.yaml, recipes and the command line, checked before anything starts.

`ray_config.yaml` is the only place that holds defaults; the sections say what each setting may be.
"""

import argparse
import difflib
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError
from .layers import Layer, merge, merge_trees, nested, origin
from .names import with_current_names
from .recipe import ROOT, read_yaml, recipe_layers, recipes
from .tree import Settings

log = logging.getLogger(__name__)

DEFAULTS = ROOT / "ray_config.yaml"


def load(
    argv: Sequence[str], description: str = "", flags: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, bool]]:
    """Settings from ray_config.yaml, the recipes and the command line `argv` (without the program's name).

    `flags`: further boolean options of one job, each with the setting that it stands for, as in {"retry-rejects":
    "--cache.retry_rejects=all"}, or with "". The second result says of --dry-run and of those that stand for none
    whether they were given: {"dry_run": False, "repair": True}. Raises UserError.
    """
    known, rest = _parser(description, flags or {}).parse_known_args(argv)
    settings = _layered(known.config, known.recipe, parse_overrides([*rest, *known.short_for]), known.dry_run)
    return settings, {name: given for name, given in vars(known).items() if isinstance(given, bool)}


def load_settings(recipe: str | Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ray_config.yaml, a recipe or several, and `overrides` by dotted name. Raises UserError.

    >>> load_settings("demo", {"run.storage": "/runs", "train.steps": 50}).train.steps
    50
    """
    typed: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        typed = merge_trees(typed, nested(key, value))
    return _layered(DEFAULTS, [recipe] if isinstance(recipe, str) else recipe, typed)


def build(layers: Sequence[dict[str, Any]], overrides: Sequence[str] = ()) -> Settings:
    """Merge `layers` (later ones win) and `overrides` (["--train.steps", "5"]) and validate. Raises UserError."""
    files = [Layer("file", f"layer {number}", tree) for number, tree in enumerate(layers, 1)]
    return _resolve([*files, Layer("command line", "", parse_overrides(overrides))])[0]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """["--train.steps", "5", "--data.path=x"] -> {"train": {"steps": 5}, "data": {"path": "x"}}; values are YAML."""
    tree: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in key:
            raise UserError(f"{argument}: unexpected on the command line; settings are --SECTION.KEY VALUE, see --help")
        if not equals:
            if not rest:
                raise UserError(f"--{key}: a value must follow; write --{key} VALUE")
            text = rest.pop(0)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        tree = merge_trees(tree, nested(key, value))
    return tree


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, in ray_config.yaml's order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _parser(description: str, flags: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--SECTION.KEY VALUE sets any key of ray_config.yaml, where each is explained.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        action="append",
        default=[],
        help=f"overlay jobs/recipes/NAME.yaml, may be repeated: {', '.join(recipes())}",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULTS, help="base settings")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the plan; do nothing")
    parser.set_defaults(short_for=[])
    for name, setting in flags.items():
        if setting:
            parser.add_argument(
                f"--{name}", dest="short_for", action="append_const", const=setting, help=f"short for {setting}"
            )
        else:
            parser.add_argument(f"--{name}", action="store_true")
    return parser


def _layered(config: Path, named: Sequence[str], typed: dict[str, Any], dry_run: bool = False) -> Settings:
    layers = [Layer("file", config.name, read_yaml(config)), *recipe_layers(named), Layer("command line", "", typed)]
    settings, layers = _resolve(layers)
    _report_without_effect(settings, layers, dry_run)
    return settings


def _resolve(layers: Sequence[Layer]) -> tuple[Settings, list[Layer]]:
    """Checked settings, and the layers under present names."""
    current = [Layer(one.origin, one.name, with_current_names(one.tree, str(one))) for one in layers]
    try:
        return Settings.model_validate(merge(current)), current
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _report_without_effect(settings: Settings, layers: Sequence[Layer], dry_run: bool) -> None:
    """Refuse what was typed and does nothing; say what does nothing and came from a recipe.

    Settings of ray_config.yaml, or of the file in its place, are said with --dry-run only. Null says that a setting is
    not used, so it is never an error. Raises UserError.
    """
    typed, recipe, file = [], [], []
    for key, cause in settings.without_effect().items():
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        layer = origin(layers, key)
        if value is None or layer is None:
            continue
        if layer.origin == "command line":
            typed.append(f"{key} = {value}: has no effect {cause}")
        elif layer.origin == "file":
            file.append(key)
        else:
            recipe.append(f"{key} = {value} ({layer}), {cause.partition(';')[0]}")
    if typed:
        more = f" (and {len(typed) - 1} more)" if len(typed) > 1 else ""
        raise UserError(typed[0] + more)
    if recipe:
        log.info("without effect: %s", "; ".join(recipe))
    if file:
        log.log(logging.INFO if dry_run else logging.DEBUG, "defaults without effect here: %s", ", ".join(file))


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line, and how many more there are."""
    found = error.errors()
    said = {(one["loc"], one["msg"]) for one in found}
    # what `prior` inherits is wrong at its source already
    first, *others = [one for one in found if one["loc"][:1] != ("prior",) or (one["loc"][1:], one["msg"]) not in said]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _keys(Settings), n=1)
        hint = f"did you mean {close[0]}?" if close else "ray_config.yaml lists all keys"
        return f"{key} = {first['input']!r}: unknown setting; {hint}{more}"
    if first["type"] == "missing":
        return f"{key}: not set; every setting needs a value, as in ray_config.yaml{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        parent = "prior." if first["loc"][:1] == ("prior",) and message.startswith("model.") else ""
        return f"{parent}{message}{more}"
    reason = f"{message[0].lower()}{message[1:]}"
    return f"{key} = {first['input']!r}: {reason}; see the comment at {key} in ray_config.yaml{more}"


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings in `section`."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                keys += _keys(inner, f"{prefix}{name}.")
    return keys
