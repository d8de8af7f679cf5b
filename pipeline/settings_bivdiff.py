"""The settings of jobs/bivdiff.py, and which of them are refused together."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .settings_base import Fraction, NonNegative, Section

Task = Literal["controlnet", "t2i_adapter", "instruct_pix2pix", "prompt_to_prompt", "inpainting", "outpainting"]
Framework = Literal["bivdiff", "idm_only", "vdm_only", "sequential", "alternate", "fuse"]

CONTROLLED = ("controlnet", "t2i_adapter")
JOINT = ("sequential", "alternate", "fuse")  # one trajectory for both models
INPUT_CHANNELS = (
    "instruct_pix2pix",
    "inpainting",
    "outpainting",
)  # their networks take more than a latent, and cannot invert one
# "Mixing ratio" of the authors' configurations, for each of the paper's image models; T2I-Adapter's is ControlNet's
PAPER_ALPHA = {
    "controlnet": 1.0,
    "t2i_adapter": 1.0,
    "instruct_pix2pix": 1.0,
    "prompt_to_prompt": 0.25,
    "inpainting": 0.1,
    "outpainting": 0.1,
}


class BivdiffSettings(Section):
    items: str | None
    task: Task
    framework: Framework
    alpha: Fraction | Annotated[list[Fraction], Field(min_length=1)] | None
    image_model: str | None
    adapter: str | None
    inversion_model: str | None
    video_model: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    control: Literal["files", "canny"]
    canny: tuple[NonNegative, NonNegative]
    control_scale: NonNegative
    outpaint: Literal["sides", "top_and_bottom"]
    edit: Literal["replace", "refine"]
    cross_replace: Fraction
    self_replace: Fraction
    image_guidance: NonNegative
    guidance: NonNegative
    steps: Annotated[int, Field(ge=2, le=1000)]
    fps: PositiveInt

    @property
    def alphas(self) -> list[float]:
        """The mixing ratios to make a clip with; the frameworks without inversion have none to choose."""
        if self.framework != "bivdiff" or self.alpha is None:
            return [PAPER_ALPHA[self.task]]
        return sorted(set(self.alpha)) if isinstance(self.alpha, list) else [self.alpha]

    @property
    def inverts_frames(self) -> bool:
        """Whether the image foundation model inverts what was made (eq. 2)."""
        return self.framework == "bivdiff" and max(self.alphas) > 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.items is not None:
            check_bivdiff(self)
        return self


def check_bivdiff(bivdiff: BivdiffSettings) -> None:
    """Models that the task and the framework need. Raises ValueError."""
    needed = {
        "image_model": bivdiff.framework != "vdm_only",
        "video_model": bivdiff.framework != "idm_only",
        "adapter": bivdiff.task in CONTROLLED and bivdiff.framework != "vdm_only",
        "inversion_model": bivdiff.task in INPUT_CHANNELS and bivdiff.inverts_frames,
    }
    for name, is_needed in needed.items():
        if is_needed and getattr(bivdiff, name) is None:
            raise ValueError(
                f"bivdiff.{name} = null: bivdiff.task = {bivdiff.task} with bivdiff.framework = {bivdiff.framework} needs it; "
                "give a folder of diffusers (docs/bivdiff.md says which)"
            )
    if bivdiff.task == "prompt_to_prompt" and bivdiff.guidance <= 1:
        raise ValueError(
            f"bivdiff.guidance = {bivdiff.guidance}: prompt_to_prompt edits the guided half; set it above 1"
        )
    if bivdiff.canny[0] > bivdiff.canny[1]:
        raise ValueError(f"bivdiff.canny = {list(bivdiff.canny)}: give the lower threshold first")
