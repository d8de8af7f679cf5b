"""CogVideoX: published folders widen to an image model that begins as the text model, and others are refused."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from helpers.tiny_networks import randomise
from helpers.tiny_published import COGVIDEOX

from pipeline.models.checkpoints.cogvideox import read_transformer, widened
from pipeline.models.checkpoints.weights import WeightsError, WeightsMismatch, load_strict
from pipeline.models.image_to_video import CogVideoXImageToVideo

TEXT = {"text_embed_dim": 16, "max_text_seq_length": 5, "out_channels": 4}
RANDOM = torch.Generator().manual_seed(0)
Z, IMAGE = torch.randn(2, 3, 4, 4, 4, generator=RANDOM), torch.randn(2, 4, 4, 4, generator=RANDOM)
CAPTION, T = torch.randn(2, 5, 16, generator=RANDOM), torch.tensor([1.5, 900.0])
Y = torch.zeros(2, dtype=torch.int64)


def build(**change: int) -> CogVideoXTransformer3DModel:
    with torch.random.fork_rng():
        return CogVideoXTransformer3DModel(**{**COGVIDEOX, **TEXT, "in_channels": 8, **change})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cogvideox")
    transformer = build(in_channels=4)
    randomise(transformer)
    transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    return folder


@torch.no_grad()
def test_image_model_begins_as_the_text_model(folder: Path) -> None:
    state = read_transformer(folder)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    assert set(state) == set(read_transformer(folder / "transformer"))
    teacher = build(in_channels=4)
    load_strict(teacher, state, "2b")
    student = build()
    load_strict(student, widened(state, student), "2b")
    found = CogVideoXImageToVideo(student)(Z, T, Y, IMAGE, CAPTION)
    assert found.shape == Z.shape and found.abs().max() > 0.1
    torch.testing.assert_close(found, teacher(Z, CAPTION, T, return_dict=False)[0])


def test_image_condition_gets_a_gradient(folder: Path) -> None:
    student = build()
    load_strict(student, widened(read_transformer(folder), student), "2b")
    CogVideoXImageToVideo(student)(Z, T, Y, IMAGE, CAPTION).square().mean().backward()
    gradient = student.patch_embed.proj.weight.grad
    assert gradient is not None and gradient[:, 4:].abs().max() > 0


def test_activation_checkpointing_keeps_the_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        transformer = build()
        randomise(transformer)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        CogVideoXImageToVideo(transformer.train())(Z, T, Y, IMAGE, CAPTION).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in transformer.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_compiled_transformer_is_one_graph() -> None:
    transformer = build()
    randomise(transformer)
    plain = CogVideoXImageToVideo(transformer)(Z, T, Y, IMAGE, CAPTION)
    transformer.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(CogVideoXImageToVideo(transformer)(Z, T, Y, IMAGE, CAPTION), plain)


def test_seed_decides_the_weights() -> None:
    before = torch.get_rng_state()
    states = []
    for seed in (3, 3, 4):
        transformer = build()
        CogVideoXImageToVideo(transformer).initialise(seed)
        states.append(transformer.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["proj_out.weight"], states[2]["proj_out.weight"])


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="give a diffusers folder"):
        read_transformer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "CogVideoXTransformer3DModel"}))
    with pytest.raises(WeightsError, match=r"holds no diffusion_pytorch_model\*.safetensors"):
        read_transformer(tmp_path)
    student = build()
    with pytest.raises(WeightsMismatch, match=r"patch_embed.proj.weight is missing"):
        widened({"x": torch.ones(1)}, student)
    wider = build(num_layers=2)
    with pytest.raises(WeightsMismatch, match=r"missing \(transformer_blocks.1"):
        load_strict(wider, widened(read_transformer(folder), wider), "2b")
