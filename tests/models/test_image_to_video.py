"""The backbone gets the image frame, the prior, and no other condition."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.image_to_video import ImageToVideo
from pipeline.models.latte import Latte

FRAMES = 3
T, Y = torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
Z, PRIOR = torch.randn(2, 2, FRAMES, 4, 4, 4, generator=torch.Generator().manual_seed(0))
IMAGE = PRIOR[:, 0]


def backbone(**change: Any) -> Latte:
    sizes = dict(input_size=4, patch_size=2, hidden_size=16, depth=2, num_heads=2, num_classes=5)
    return Latte(**{"in_channels": 4, "num_frames": FRAMES + 1, **sizes, **change})


class Recorder(torch.nn.Module):
    """Stand for a backbone: keep the input and return it."""

    num_frames, null_class = FRAMES + 1, 5

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen = x
        return x


def test_image_is_the_first_frame_and_its_output_is_dropped() -> None:
    recorder = Recorder()
    out = ImageToVideo(recorder, "frame")(Z, T, Y, image_latent=IMAGE)  # type: ignore[arg-type]
    assert torch.equal(recorder.seen, torch.cat([IMAGE[:, None], Z], dim=1))
    assert torch.equal(out, Z)


def test_prior_is_beside_the_latent() -> None:
    recorder = Recorder()
    model = ImageToVideo(recorder, "frame", prior_condition=True)  # type: ignore[arg-type]
    out = model(Z, T, Y, IMAGE, PRIOR)
    assert torch.equal(recorder.seen[:, 0], torch.cat([IMAGE, IMAGE], dim=1))
    assert torch.equal(recorder.seen[:, 1:], torch.cat([Z, PRIOR], dim=2))
    assert torch.equal(out, Z)


def test_teacher_with_learned_sigma_predicts_the_mean_alone() -> None:
    teacher = ImageToVideo(backbone(num_frames=FRAMES, learn_sigma=True), "none")
    assert teacher(Z, T, Y).shape == Z.shape
    assert (teacher.num_frames, teacher.null_class) == (FRAMES, 5)


def test_frames_of_the_clip_leave_the_image_out() -> None:
    assert ImageToVideo(backbone(), "frame").num_frames == FRAMES


def test_state_is_the_backbones_alone() -> None:
    model = ImageToVideo(backbone(), "frame")
    assert set(model.state_dict()) == {f"backbone.{name}" for name in model.backbone.state_dict()}


@pytest.mark.parametrize(
    ("condition", "prior_condition", "given", "message"),
    [
        ("frame", False, {}, "image_latent is missing"),
        ("none", False, {"image_latent": IMAGE}, "image_latent is given"),
        ("frame", False, {"image_latent": IMAGE, "prior": PRIOR}, "prior is given"),
        ("frame", True, {"image_latent": IMAGE}, "prior is missing"),
    ],
)
def test_missing_and_unexpected_conditions_are_refused(
    condition: Any, prior_condition: bool, given: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ImageToVideo(backbone(), condition, prior_condition)(Z, T, Y, **given)


@pytest.mark.parametrize(("condition", "prior_condition"), [("concat", False), ("none", True)])
def test_impossible_conditions_are_refused(condition: Any, prior_condition: bool) -> None:
    with pytest.raises(ValueError, match="frame"):
        ImageToVideo(backbone(), condition, prior_condition)
