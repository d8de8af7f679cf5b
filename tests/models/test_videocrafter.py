"""Checkpoints of VideoCrafter and DynamiCrafter start an image-to-video model, and others are refused."""

from typing import Any

import pytest
import torch
from helpers.tiny_networks import randomise
from torch import Tensor

from pipeline.models.checkpoints.videocrafter import state_from_published
from pipeline.models.checkpoints.weights import WeightsMismatch, load_strict
from pipeline.models.resampler import Resampler
from pipeline.models.unet3d import UNet3D
from pipeline.models.videocrafter import VideoCrafter

SMALL: dict[str, Any] = dict(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0,), head_size=16
)
FRAMES, FEATURES = 2, 12
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(2, FRAMES, 8, 4, 4, generator=RANDOM)
T, STRIDE = torch.tensor([1.5, 900.0]), torch.tensor([3, 6])
TEXT = torch.randn(2, 5, 16, generator=RANDOM)
IMAGE = torch.randn(2, 7, FEATURES, generator=RANDOM)


def model(seed: int = 0, image: bool = True, **change: Any) -> VideoCrafter:
    unet = UNet3D(text_size=16, image_tokens=image, seed=seed, **{**SMALL, **change})
    size = dict(size=16, depth=1, heads=2, head_size=8, queries=3, frames=FRAMES)
    resampler = Resampler(**size, embedding_size=FEATURES, out_size=16, seed=seed) if image else None
    return VideoCrafter(unet, resampler)


def stirred(network: VideoCrafter) -> VideoCrafter:
    return randomise(network, seed=1, std=0.2).eval()


def text_to_video() -> tuple[VideoCrafter, dict[str, Tensor]]:
    """A text-to-video model, and its weights in VideoCrafter/Text2Video-256's layout, beside those of other parts."""
    teacher = stirred(model(image=False, in_channels=4))
    others = {
        "first_stage_model.quant_conv.weight": torch.ones(1),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }
    return teacher, {**teacher.state_dict(), **others}


@torch.no_grad()
def test_text_to_video_weights_predict_the_same_in_the_image_model() -> None:
    teacher, published = text_to_video()
    student = model(seed=3).eval()
    load_strict(student, state_from_published(published, student), "t2v.ckpt")
    found = student(X, T, TEXT, STRIDE, IMAGE)
    torch.testing.assert_close(found, teacher(X[:, :, :4], T, TEXT, STRIDE))
    assert found.abs().max() > 0.1


def test_new_layers_of_the_image_model_get_a_gradient() -> None:
    _, published = text_to_video()
    student = model()
    load_strict(student, state_from_published(published, student), "t2v.ckpt")
    student(X, T, TEXT, STRIDE, IMAGE).square().mean().backward()
    gradients = dict(student.named_parameters())
    for name in ("input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_v_ip.weight"):
        gradient = gradients[f"model.diffusion_model.{name}"].grad
        assert gradient is not None and gradient.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("old_name", [False, True])
def test_dynamicrafter_weights_are_taken_as_they_are(old_name: bool) -> None:
    published = stirred(model()).state_dict()
    if old_name:
        published = {name.replace("fps_embedding", "framestride_embed"): value for name, value in published.items()}
    student = model(seed=5).eval()
    load_strict(
        student, state_from_published({**published, "embedder.model.logit_scale": torch.ones(())}, student), "d"
    )
    torch.testing.assert_close(student(X, T, TEXT, STRIDE, IMAGE), stirred(model())(X, T, TEXT, STRIDE, IMAGE))


def test_wrong_checkpoints_are_reported_by_key() -> None:
    _, published = text_to_video()
    student = model(channel_mult=(1, 1))
    with pytest.raises(WeightsMismatch, match=r"mis-shaped \(model.diffusion_model.input_blocks.3.0"):
        load_strict(student, state_from_published(published, student), "t2v.ckpt")
    half = {name: value for name, value in published.items() if ".to_k." not in name}
    with pytest.raises(WeightsMismatch, match=r"missing \(.*to_k.weight"):
        load_strict(model(), state_from_published(half, model()), "t2v.ckpt")
    partly = {**published, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.alpha": torch.zeros(())}
    with pytest.raises(WeightsMismatch, match=r"missing \(.*alpha"):
        load_strict(model(), state_from_published(partly, model()), "half an image model")
    with pytest.raises(WeightsMismatch, match="not a checkpoint of VideoCrafter"):
        state_from_published({"x_embedder.proj.weight": torch.ones(1)}, student)


@torch.no_grad()
def test_every_condition_counts() -> None:
    network = stirred(model())
    plain = network(X, T, TEXT, STRIDE, IMAGE)
    for other in ((X, T + 1, TEXT, STRIDE, IMAGE), (X, T, TEXT + 1, STRIDE, IMAGE), (X, T, TEXT, STRIDE + 1, IMAGE)):
        assert not torch.allclose(plain, network(*other))
    assert not torch.allclose(plain, network(X, T, TEXT, STRIDE, IMAGE + torch.randn(IMAGE.shape, generator=RANDOM)))
    alone = network(X[:1], T[:1], TEXT[:1], STRIDE[:1], IMAGE[:1])
    torch.testing.assert_close(plain[:1], alone)


@pytest.mark.parametrize("seed", [3, 4])
def test_seed_decides_the_weights(seed: int) -> None:
    before = torch.get_rng_state()
    first, again = model(seed).state_dict(), model(3)
    again.initialise(seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], value) for name, value in again.state_dict().items())
    assert not model(seed)(X, T, TEXT, STRIDE, IMAGE).any()


def test_activation_checkpointing_keeps_the_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = stirred(model(activation_checkpointing=checkpointing)).train()
        torch.manual_seed(0)  # of the dropout
        network(X, T, TEXT, STRIDE, IMAGE).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_compiled_network_is_one_graph() -> None:
    network = stirred(model(channel_mult=(1,)))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, T, TEXT, STRIDE, IMAGE), network(X, T, TEXT, STRIDE, IMAGE))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X[:, :, :4], T, TEXT, STRIDE, IMAGE), "built for 8 channels"),
        ((X[..., :3], T, TEXT, STRIDE, IMAGE), "multiples of 2"),
        ((X, T, TEXT[..., :3], STRIDE, IMAGE), "text of width 16, not 3"),
        ((X, T, TEXT, STRIDE), "image tokens are missing"),
    ],
)
def test_input_of_another_model_is_refused(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(*inputs)
