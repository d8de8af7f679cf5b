"""Section `bivdiff`: training-free videos by an image and a video diffusion model (jobs/bivdiff.py)."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from .section import Dtype, Fraction, NonNegative, Section

ImageTask = Literal["controlnet", "t2i_adapter", "instruct_pix2pix", "prompt_to_prompt", "inpainting", "outpainting"]
Framework = Literal["bivdiff", "idm_only", "vdm_only", "sequential", "alternate", "fuse"]

CONTROLLED = ("controlnet", "t2i_adapter")
JOINT = ("sequential", "alternate", "fuse")  # one trajectory for both models
# Their networks take more than a latent, and cannot invert one
INPUT_CHANNELS = ("instruct_pix2pix", "inpainting", "outpainting")
# "Mixing ratio" of the authors' configurations, for each of the paper's image models; T2I-Adapter's is ControlNet's
PAPER_ALPHA = {
    "controlnet": 1.0,
    "t2i_adapter": 1.0,
    "instruct_pix2pix": 1.0,
    "prompt_to_prompt": 0.25,
    "inpainting": 0.1,
    "outpainting": 0.1,
}
# Settings that only some tasks read
READ_BY = {
    "control": CONTROLLED,
    "canny": CONTROLLED,
    "control_scale": CONTROLLED,
    "outpaint": ("outpainting",),
    "edit": ("prompt_to_prompt",),
    "cross_replace": ("prompt_to_prompt",),
    "self_replace": ("prompt_to_prompt",),
    "image_guidance": ("instruct_pix2pix",),
}


class BivdiffSettings(Section):
    """Items, task, framework, models and sampling of jobs/bivdiff.py."""

    items: str | None
    task: ImageTask
    framework: Framework
    alpha: Fraction | Annotated[list[Fraction], Field(min_length=1)] | None
    image_model: str | None
    adapter: str | None
    inversion_model: str | None
    video_model: str | None
    dtype: Dtype
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
        """Whether the image foundation model inverts the frames that were made (eq. 2)."""
        return self.framework == "bivdiff" and max(self.alphas) > 0

    def without_effect(self, key: str) -> dict[str, str]:
        """Settings of other tasks and frameworks, when the job has items to make."""
        if self.items is None:
            return {}
        found = {
            name: f"with bivdiff.task = {self.task}; it is read by {' and '.join(tasks)} only; leave it out"
            for name, tasks in READ_BY.items()
            if self.task not in tasks
        }
        if self.control == "files":
            found.setdefault("canny", "with bivdiff.control = files; leave it out, or set bivdiff.control canny")
        if self.framework != "bivdiff":
            found["alpha"] = f"with bivdiff.framework = {self.framework}, which mixes no inversions; leave it out"
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.items is not None:
            self._check_models()
            self._check_values()
        return self

    def _check_models(self) -> None:
        needed = {
            "image_model": self.framework != "vdm_only",
            "video_model": self.framework != "idm_only",
            "adapter": self.task in CONTROLLED and self.framework != "vdm_only",
            "inversion_model": self.task in INPUT_CHANNELS and self.inverts_frames,
        }
        for name, is_needed in needed.items():
            if is_needed and getattr(self, name) is None:
                raise ValueError(
                    f"bivdiff.{name} = null: bivdiff.task = {self.task} with bivdiff.framework = {self.framework} "
                    "needs it; give a folder of diffusers (docs/bivdiff.md says which)"
                )

    def _check_values(self) -> None:
        if self.task == "prompt_to_prompt" and self.guidance <= 1:
            raise ValueError(
                f"bivdiff.guidance = {self.guidance}: prompt_to_prompt edits the guided half; set it above 1"
            )
        if self.canny[0] > self.canny[1]:
            raise ValueError(f"bivdiff.canny = {list(self.canny)}: give the lower threshold first")
