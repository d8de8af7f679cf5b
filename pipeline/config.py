"""An earlier place of what is now in pipeline/settings."""

from .settings.load import Options, build, load, parse_overrides, to_yaml
from .settings.recipe import RECIPES, ROOT, read_yaml, recipes

__all__ = ["RECIPES", "ROOT", "Options", "build", "load", "parse_overrides", "read_yaml", "recipes", "to_yaml"]
