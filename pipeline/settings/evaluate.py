"""Section `evaluate`: the networks that samples are measured with."""

from typing import Annotated

from pydantic import Field, PositiveInt

from .section import Section


class EvaluateSettings(Section):
    """The samples, the networks that measure them, and the metrics that they are compared with."""

    samples: str | None
    detector: str | None
    i3d: str | None
    c3d: str | None
    videomae: str | None
    clip: str | None
    raft: str | None
    dreamsim: str | None
    expected: str | None
    batch: PositiveInt
    bootstrap: Annotated[int, Field(ge=2)]
