"""The base class of every section, and the types of values that several sections share."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
InsideZeroOne = Annotated[float, Field(gt=0, lt=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
Dtype = Literal["float32", "bfloat16", "float16"]
Problems = Iterator[str]


def _number_or_range(value: Any) -> Any:
    numbers = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value, value]
    if not all(type(number) is int and number >= 1 for number in numbers) or numbers[0] > numbers[1]:
        raise ValueError("expected a whole number from 1, or a range with the smaller number first, such as [1, 6]")
    return value


NumberOrRange = Annotated[int | tuple[int, int], BeforeValidator(_number_or_range)]


class Section(BaseModel):
    """A group of settings. It is frozen, has no defaults of its own, and refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def contradictions(self) -> Problems:
        """Yield what is wrong with these values together: one line each with key, value, expectation and remedy."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in self.contradictions():
            raise ValueError(problem)
        return self


def dotted_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings in `section`, each section before its settings."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from dotted_names(inner, f"{prefix}{name}.")
