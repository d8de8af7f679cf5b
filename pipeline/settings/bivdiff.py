"""Section `bivdiff`: training-free videos by an image and a video diffusion model (jobs/bivdiff.py)."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from .section import Dtype, Fraction, Problems, Section

CONTROLLED = ("controlnet", "t2i_adapter")
JOINT = ("sequential", "alternate", "fuse")  # one trajectory for both models
INPUT_CHANNELS = ("instruct_pix2pix", "inpainting", "outpainting")  # their networks cannot invert a latent alone
PAPER_ALPHA = {  # "mixing ratio" of the authors' configurations; T2I-Adapter's is ControlNet's
    "controlnet": 1.0,
    "t2i_adapter": 1.0,
    "instruct_pix2pix": 1.0,
    "prompt_to_prompt": 0.25,
    "inpainting": 0.1,
    "outpainting": 0.1,
}


class BivdiffSettings(Section):
    """Items, task, framework, models and sampling of jobs/bivdiff.py."""

    items: str | None
    task: Literal["controlnet", "t2i_adapter", "instruct_pix2pix", "prompt_to_prompt", "inpainting", "outpainting"]
    framework: Literal["bivdiff", "idm_only", "vdm_only", "sequential", "alternate", "fuse"]
    alpha: Fraction | Annotated[list[Fraction], Field(min_length=1)] | None
    image_model: str | None
    adapter: str | None
    inversion_model: str | None
    video_model: str | None
    dtype: Dtype
    control: Literal["files", "canny"]
    canny: tuple[NonNegativeFloat, NonNegativeFloat]
    control_scale: NonNegativeFloat
    outpaint: Literal["sides", "top_and_bottom"]
    edit: Literal["replace", "refine"]
    cross_replace: Fraction
    self_replace: Fraction
    image_guidance: NonNegativeFloat
    guidance: NonNegativeFloat
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

    @property
    def used_models(self) -> dict[str, Any]:
        """{key: folder} of the models that the task and the framework take."""
        inverts_apart = self.task in INPUT_CHANNELS or self.inversion_model is not None
        uses = {
            "image_model": self.framework != "vdm_only",
            "adapter": self.framework != "vdm_only" and self.task in CONTROLLED,
            "inversion_model": self.inverts_frames and inverts_apart,
            "video_model": self.framework != "idm_only",
        }
        return {name: getattr(self, name) for name, is_used in uses.items() if is_used}

    def contradictions(self) -> Problems:
        """When the job has items to make: every model that this task and framework need is given, and values fit."""
        if self.items is None:
            return
        for name, folder in self.used_models.items():
            if folder is None:
                chosen = f"bivdiff.task = {self.task} with bivdiff.framework = {self.framework}"
                yield f"bivdiff.{name} = null: {chosen} needs it; give a folder of diffusers (see docs/bivdiff.md)"
        if self.task == "prompt_to_prompt" and self.guidance <= 1:
            yield f"bivdiff.guidance = {self.guidance}: prompt_to_prompt edits the guided half; set it above 1"
        if self.canny[0] > self.canny[1]:
            yield f"bivdiff.canny = {list(self.canny)}: give the lower threshold first"
