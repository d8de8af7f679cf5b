"""Section `ablate`: which of the paper's comparisons are made, and with how many videos and seeds."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .section import Section


class AblateSettings(Section):
    """Experiments of jobs/ablate.py and their size."""

    experiments: list[Literal["saf", "steps", "priors", "samplers", "leakage"]]
    videos: Annotated[int, Field(ge=8)]
    seeds: PositiveInt
    clips: Annotated[int, Field(ge=2)]
    sampler_clips: Annotated[int, Field(ge=2)]
    evaluations: list[Annotated[int, Field(ge=2)]]
    bootstrap: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _check_held_out(self) -> Self:
        if 2 * self.clips > self.videos:
            raise ValueError(
                f"ablate.clips = {self.clips} of ablate.videos = {self.videos} would be held out; half is the most"
            )
        if self.sampler_clips > self.clips:
            raise ValueError(
                f"ablate.sampler_clips = {self.sampler_clips} exceeds ablate.clips = {self.clips}; lower it"
            )
        return self
