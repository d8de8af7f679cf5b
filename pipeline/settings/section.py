"""The base class of every section, and the number types that several sections share."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A group of settings. It is frozen, has no defaults of its own, and refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def without_effect(self, key: str) -> dict[str, str]:
        """Names of settings that do nothing beside the section's other settings, with the cause and the remedy.

        `key` is the dotted name of the section ("prior.train.lora"). Names may be dotted too ("unet3d.dropout").
        """
        return {}


def subsections(section: Section, key: str = "") -> Iterator[tuple[str, Section]]:
    """Yield the sections inside `section` with their dotted names, each before its own inner sections."""
    for name in type(section).model_fields:
        inner = getattr(section, name)
        if isinstance(inner, Section):
            yield f"{key}{name}", inner
            yield from subsections(inner, f"{key}{name}.")
