"""Latte, its guidance and the neural prior against outputs of the authors' own implementation."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models.checkpoints.weights import load_strict
from pipeline.models.conditioning import guided
from pipeline.models.image_to_video import ImageToVideo
from pipeline.models.latte import LATTE_SIZES, Latte
from pipeline.models.prior import NeuralPrior

HERE = Path(__file__).parent
KEYS = json.loads((HERE / "latte_state_dict_keys.json").read_text())


def golden(name: str) -> tuple[dict[str, Tensor], Latte]:
    """The file's inputs and outputs, and a Latte that holds its weights."""
    settings = json.loads((HERE / f"{name}_seed0.json").read_text())
    numbers = load_file(HERE / f"{name}_seed0.safetensors")
    prior = name == "latte_prior"
    prefix = "weights.nwarp_model." if prior else "weights."
    weights = {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}
    latte = Latte(
        **{
            key: settings[key]
            for key in ("input_size", "patch_size", "hidden_size", "depth", "num_heads", "num_classes")
        },
        in_channels=weights["x_embedder.proj.weight"].shape[1],
        num_frames=weights["temp_embed"].shape[1],
        learn_sigma=settings.get("learn_sigma", False),
        time_embedding=not prior,
    )
    for made in ("pos_embed", "temp_embed"):
        torch.testing.assert_close(latte.state_dict()[made], weights[made], rtol=0, atol=1e-6)
    load_strict(latte, weights, name)
    return numbers, latte.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["latte_bridge", "latte_bridge_np", "latte_diffusion_sigma"])
def test_output_equals_the_authors(name: str) -> None:
    numbers, latte = golden(name)
    found = latte(numbers["x"], numbers["t"], numbers["y"])
    torch.testing.assert_close(found, numbers["out"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["latte_bridge", "latte_bridge_np"])
def test_guided_output_equals_the_authors(name: str) -> None:
    # theirs takes one sample as a conditional and a null half, and gives its guided output twice
    numbers, latte = golden(name)
    null = latte.null_class
    assert numbers["y"].tolist() == [3, null]
    found = guided(latte, numbers["y"][:1], null, scale=7.0)(numbers["x"][:1], numbers["t"][:1])
    torch.testing.assert_close(found.expand(2, -1, -1, -1, -1), numbers["out_cfg7"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_image_to_video_assembles_the_authors_input() -> None:
    numbers, latte = golden("latte_bridge")
    x = numbers["x"]
    found = ImageToVideo(latte, "frame")(x[:, 1:], numbers["t"], numbers["y"], image_latent=x[:, 0])
    torch.testing.assert_close(found, numbers["out"][:, 1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_neural_prior_equals_the_authors() -> None:
    numbers, latte = golden("latte_prior")
    found = NeuralPrior(latte)(numbers["image"][:, 0], numbers["y"])
    torch.testing.assert_close(found, numbers["out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", ["S", "XL"])
def test_parameters_equal_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        latte = Latte(
            input_size=32, patch_size=2, in_channels=4, num_frames=17, num_classes=101, **LATTE_SIZES[size]._asdict()
        )
    assert {key: list(value.shape) for key, value in latte.state_dict().items()} == KEYS[f"Latte-{size}/2"]
