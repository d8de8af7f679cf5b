"""Where settings come from: ray_config.yaml < recipe < command line, validated before anything starts.

`ray_config.yaml` is the only place that holds defaults; pipeline/settings.py says what each setting may be.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from .errors import UserError
from .settings import Settings

HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "ray_config.yaml").is_file() else HERE.parent  # a wheel holds the defaults inside the package
RECIPES = ROOT / "jobs" / "recipes"


class Options(NamedTuple):
    """What the command line said besides settings."""

    recipes: list[str]
    config: Path
    dry_run: bool
    flags: dict[str, bool]


def load(argv: Sequence[str], description: str = "", flags: Sequence[str] = ()) -> tuple[Settings, Options]:
    """Settings from ray_config.yaml, the recipe and the command line `argv` (without the program's name).

    `flags` names further boolean options of one job, such as "verify" for --verify. Raises UserError.
    """
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
    parser.add_argument("--config", metavar="FILE", type=Path, default=ROOT / "ray_config.yaml", help="base settings")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and the plan; do nothing")
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    known, rest = parser.parse_known_args(argv)
    files = [known.config]
    for recipe in known.recipe:
        if recipe not in recipes():
            raise UserError(f"--recipe {recipe}: no such recipe; choose one of {', '.join(recipes())}")
        files.append(RECIPES / f"{recipe}.yaml")
    settings = build([read_yaml(path) for path in files], rest)
    chosen = {flag: getattr(known, flag.replace("-", "_")) for flag in flags}
    return settings, Options(known.recipe, known.config, known.dry_run, chosen)


def recipes() -> list[str]:
    """Names of the recipes in jobs/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is sections. Raises UserError naming the file and line."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a readable file with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{path}{where}: not valid YAML ({problem}); compare with ray_config.yaml") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or any(not isinstance(value, dict) for value in loaded.values()):
        raise UserError(f"{path}: expected sections with keys (data:, train:, ...), as in ray_config.yaml")
    return loaded


def build(layers: Sequence[dict[str, Any]], overrides: Sequence[str] = ()) -> Settings:
    """Merge `layers` (later ones win) and `overrides` (["--train.steps", "5"]) and validate. Raises UserError."""
    merged: dict[str, Any] = {}
    for layer in [*layers, parse_overrides(overrides)]:
        merged = _merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """["--train.steps", "5", "--data.path=x"] -> {"train": {"steps": 5}, "data": {"path": "x"}}; values are YAML."""
    nested: dict[str, Any] = {}
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
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = _merge(nested, value)
    return nested


def to_yaml(settings: Settings) -> str:
    """The resolved settings as YAML, in ray_config.yaml's order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overlay.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError) -> str:
    """The first thing wrong, in one line; how many more there are."""
    first, *others = error.errors()
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
    return f"{key} = {first['input']!r}: {message[0].lower()}{message[1:]}; see the comment at {key} in ray_config.yaml{more}"


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _keys(inner, f"{prefix}{name}.")
    return keys
