"""Section `sample`: which model is sampled, from which images, and by which sampler."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .section import Fraction, NonNegative, Section


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
    guidance: NonNegative
    image_guidance: NonNegative | None
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

    def without_effect(self, key: str) -> dict[str, str]:
        """The number of clips of a sampling that does not take place."""
        if self.while_training is None:
            cause = "with sample.while_training = null; leave it out, or set sample.while_training"
            return {"while_training_count": cause}
        return {}

    @model_validator(mode="after")
    def _check_sampler(self) -> Self:
        if self.order > 1 and (self.sampler != "dbim" or self.eta > 0):
            raise ValueError(
                f"sample.order = {self.order} is dbim's, with sample.eta 0; set sample.order 1 or sample.sampler dbim"
            )
        if self.eta > 0 and self.sampler not in ("auto", "dbim", "ddim"):
            raise ValueError(f"sample.eta = {self.eta} is of dbim and ddim, not {self.sampler}; set sample.eta 0")
        return self
