"""Sections `sample`, `evaluate` and `ablate`: how clips are sampled, measured, and compared as in the paper."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from .section import AtLeastTwo, Fraction, Problems, Section


class SampleSettings(Section):
    """Model, images, sampler, guidance and output of sampling, during training too."""

    model_path: str | None
    checkpoint: PositiveInt | None
    images: str | None
    count: PositiveInt | None
    sampler: Literal[
        "auto", "sde_first_order", "ode_first_order", "ode_second_order", "stochastic_heun", "dbim", "ddim"
    ]
    steps: Annotated[int, Field(ge=1, le=1000)]
    spacing: Literal["uniform", "trailing", "quadratic"]
    eta: Fraction
    order: Literal[1, 2, 3]
    start: Annotated[float, Field(gt=0, le=1)]
    analytic_init: str | None
    guidance: NonNegativeFloat
    image_guidance: NonNegativeFloat | None
    stride: PositiveInt
    batch: PositiveInt
    fps: PositiveInt
    while_training: PositiveInt | None
    while_training_count: PositiveInt
    gif: bool

    @property
    def guides_image_apart(self) -> bool:
        """Whether image tokens have a guidance scale of their own."""
        return self.image_guidance not in (None, self.guidance)

    def contradictions(self) -> Problems:
        """Order and eta fit the sampler."""
        if self.order > 1 and (self.sampler != "dbim" or self.eta > 0):
            yield f"sample.order = {self.order} needs dbim and eta 0; set sample.order 1, or sampler dbim and eta 0"
        if self.eta > 0 and self.sampler not in ("auto", "dbim", "ddim"):
            yield f"sample.eta = {self.eta} applies to dbim and ddim, not to {self.sampler}; set sample.eta 0"


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
    bootstrap: AtLeastTwo


class AblateSettings(Section):
    """Experiments of jobs/ablate.py and their size."""

    experiments: list[Literal["saf", "steps", "priors", "samplers", "leakage"]]
    videos: Annotated[int, Field(ge=8)]
    seeds: PositiveInt
    clips: AtLeastTwo
    sampler_clips: AtLeastTwo
    evaluations: list[AtLeastTwo]
    bootstrap: AtLeastTwo

    def contradictions(self) -> Problems:
        """Held-out clips are at most half of the videos, and the samplers' are among them."""
        if 2 * self.clips > self.videos:
            yield f"ablate.clips = {self.clips} is more than half of ablate.videos = {self.videos}; lower it"
        if self.sampler_clips > self.clips:
            yield f"ablate.sampler_clips = {self.sampler_clips} exceeds ablate.clips = {self.clips}; lower it"
