"""Settings from ray_config.yaml, recipes and the command line, checked before anything starts.

`ray_config.yaml` is the only place that holds defaults; the sections say what each setting may be.
"""

import argparse
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import UserError
from .layers import ROOT, Layer, merge, nested, read_yaml, recipe_layers, recipes, shown
from .section import dotted_names
from .train import PriorSettings
from .tree import Settings
from .without_effect import report, without_effect

DEFAULTS = ROOT / "ray_config.yaml"


def load(
    argv: Sequence[str], description: str = "", flags: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, bool]]:
    """Settings from ray_config.yaml, the recipes and the command line `argv` (without the program's name).

    `flags`: further boolean options of one job, each with the setting that it stands for, as in {"retry-rejects":
    "--cache.retry_rejects=all"}, or with "". The second result says of --dry-run and of those that stand for none
    whether they were given: {"dry_run": False, "repair": True}. Raises UserError.
    """
    names = textwrap.fill(f"Recipes: {', '.join(recipes())}", 100, break_on_hyphens=False)
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--recipe NAME] [--SECTION.KEY VALUE ...] [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"--SECTION.KEY VALUE sets any key of ray_config.yaml, which explains each.\n\n{names}",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", metavar="NAME", action="append", default=[], help="apply a recipe; repeat it to apply several")
    add("--config", metavar="FILE", type=Path, default=DEFAULTS, help="read defaults from FILE, not ray_config.yaml")
    add("--dry-run", action="store_true", help="print the resolved settings and the plan; do nothing")
    for name, setting in (flags or {}).items():
        add(f"--{name}", action="store_true", help=f"short for {setting}" if setting else "see above")
    known, rest = parser.parse_known_args(argv)
    given = {name: value for name, value in vars(known).items() if isinstance(value, bool)}
    for name, setting in (flags or {}).items():
        if setting and given.pop(name.replace("-", "_")):
            rest.append(setting)
    return _layered(known.config, known.recipe, parse_overrides(rest), known.dry_run), given


def load_settings(recipe: str | Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from ray_config.yaml, a recipe or several, and `overrides` by dotted name. Raises UserError.

    >>> load_settings("demo", {"run.storage": "/runs", "train.steps": 50}).train.steps
    50
    """
    typed = merge(nested(key, value) for key, value in (overrides or {}).items())
    return _layered(DEFAULTS, [recipe] if isinstance(recipe, str) else recipe, typed)


def build(trees: Sequence[dict[str, Any]]) -> Settings:
    """Merge `trees` of settings (later ones win) and check them. Raises UserError."""
    return _checked([Layer(f"layer {number}", tree) for number, tree in enumerate(trees, 1)])


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """["--train.steps", "5", "--data.path=x"] -> {"train": {"steps": 5}, "data": {"path": "x"}}; values are YAML."""
    trees = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or "." not in key:
            raise UserError(f"{argument}: unexpected on the command line; settings are --SECTION.KEY VALUE, see --help")
        typed = text if equals else next(rest, None)
        if typed is None:
            raise UserError(f"--{key}: a value must follow; write --{key} VALUE")
        try:
            trees.append(nested(key, yaml.safe_load(typed)))
        except yaml.YAMLError:
            trees.append(nested(key, typed))
    return merge(trees)


def _layered(config: Path, named: Sequence[str], typed: dict[str, Any], dry_run: bool = False) -> Settings:
    """Settings of a file, recipes and what was typed. Raises UserError, also for what was typed without effect."""
    layers = [Layer(config.name, read_yaml(config)), *recipe_layers(named), Layer("command line", typed)]
    settings = _checked(layers)
    report(without_effect(settings), layers, dry_run)
    return settings


def _checked(layers: Sequence[Layer]) -> Settings:
    """The layers as one checked tree. What `prior` does not state is as in the sections of the same names."""
    tree = merge(layer.tree for layer in layers)
    inherited = {
        name: {key: value for key, value in tree[name].items() if key in section.model_fields}
        for name, section in PriorSettings.__annotations__.items()
        if isinstance(tree.get(name), dict)
    }
    try:
        return Settings.model_validate(merge([{"prior": inherited}, tree]))
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line, and how many more there are."""
    names, found = list(dotted_names(Settings)), error.errors()
    said = {(one["loc"], one["msg"]) for one in found}
    lines: dict[str, str] = {}
    for one in found:
        of_prior = one["loc"][:1] == ("prior",)
        if of_prior and (one["loc"][1:], one["msg"]) in said:
            continue  # `prior` inherits it
        key = ".".join(part for part in one["loc"] if isinstance(part, str))
        while key and key not in names and one["type"] != "extra_forbidden":
            key = key.rpartition(".")[0]  # it ended with a key of a mapping, or with one of several types
        value, message = shown(one["input"]), one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            line = f"{key} = {value}: unknown setting; {hint}ray_config.yaml lists all keys"
        elif one["type"] == "missing":
            line = f"{key}: not set; every setting needs a value, as in ray_config.yaml"
        elif one["type"] == "value_error" and isinstance(one["input"], dict):  # a contradiction in a section
            line = message.replace(f"{one['loc'][1]}.", f"prior.{one['loc'][1]}.") if of_prior else message
        else:
            if one["type"] == "string_pattern_mismatch":
                message = "expected letters, digits, '.', '_' and '-', with a letter or digit first"
            reason = f"{message[0].lower()}{message[1:]}"
            line = f"{key} = {value}: {reason}; see the comment at {key.removeprefix('prior.')} in ray_config.yaml"
        lines.setdefault(key, line)
    first, *others = lines.values()
    return first + (f" (and {len(others)} more)" if others else "")
