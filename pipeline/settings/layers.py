"""Layers of settings, their order, and which of them a value comes from.

    ray_config.yaml  <  base recipes  <  recipes named with --recipe  <  --section.key value

pydantic-settings merges them, key by key. Below all of them lies what `prior` inherits from `train` and `model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from .model import ModelSettings
from .section import Section
from .train import TrainSettings

INHERITED: dict[str, type[Section]] = {
    "model": ModelSettings,
    "train": TrainSettings,
}  # sections of `prior` that follow those of the same name


@dataclass(frozen=True)
class Layer:
    """Settings from one place."""

    origin: Literal["file", "base", "recipe", "command line"]
    name: str  # of the file or recipe
    tree: dict[str, Any]

    def __str__(self) -> str:
        return {"file": self.name, "command line": "command line"}.get(self.origin, f"recipe {self.name}")


class _Inheritance(PydanticBaseSettingsSource):
    """The lowest layer: what `prior.model` and `prior.train` do not state is as in `model` and `train`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not called: the whole tree is given at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        prior = {}
        for name, section in INHERITED.items():
            values = self.current_state.get(name)
            if isinstance(values, dict):
                prior[name] = {key: value for key, value in values.items() if key in section.model_fields}
        return {"prior": prior}


class _Merged(BaseSettings):
    """The layers, merged and not yet checked."""

    model_config = SettingsConfigDict(extra="allow", case_sensitive=True, protected_namespaces=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The layers' sources, the one that wins first; the environment and secrets are not read."""
        layers: Sequence[Layer] = cast(InitSettingsSource, init_settings).init_kwargs["layers"]
        sources = [InitSettingsSource(settings_cls, layer.tree) for layer in reversed(layers)]
        return (*sources, _Inheritance(settings_cls))


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """One tree of all layers; later ones win."""
    return dict(_Merged(layers=layers).model_extra or {})  # type: ignore[call-arg]


def merge_trees(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key."""
    merged = dict(base)
    for key, value in overlay.items():
        inner = merged.get(key)
        merged[key] = merge_trees(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def nested(key: str, value: Any) -> dict[str, Any]:
    """("train.steps", 5) -> {"train": {"steps": 5}}."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def origin(layers: Sequence[Layer], key: str) -> Layer | None:
    """The layer that the value of the dotted `key` comes from; None where `prior` inherits it."""
    for layer in reversed(layers):
        node: Any = layer.tree
        for part in key.split("."):
            node = node[part] if isinstance(node, dict) and part in node else KeyError
        if node is not KeyError:
            return layer
    return None
