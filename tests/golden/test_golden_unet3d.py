"""The VideoCrafter / DynamiCrafter U-Net and resampler against outputs of the authors' own implementation."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.models.checkpoints.weights import load_strict
from pipeline.models.resampler import Resampler
from pipeline.models.unet3d import UNet3D

HERE = Path(__file__).parent


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, int]]:
    return load_file(HERE / f"{name}_seed0.safetensors"), json.loads((HERE / f"{name}_seed0.json").read_text())


def load_golden(module: nn.Module, numbers: dict[str, Tensor]) -> None:
    weights = {name.removeprefix("weights."): value for name, value in numbers.items() if name.startswith("weights.")}
    load_strict(module, weights, "golden")
    module.eval()


def golden_unet() -> tuple[dict[str, Tensor], UNet3D]:
    numbers, config = golden("videocrafter_unet")
    unet = UNet3D(
        in_channels=config["in_channels"],
        model_channels=config["model_channels"],
        channel_mult=config["channel_mult"],  # type: ignore[arg-type]
        num_res_blocks=config["num_res_blocks"],
        attention_levels=(0, 1),
        head_size=config["num_head_channels"],
        text_size=config["context_dim"],
    )
    load_golden(unet, numbers)
    return numbers, unet


@torch.no_grad()
def test_output_equals_the_authors() -> None:
    numbers, unet = golden_unet()
    text, image = numbers["context"].split([77, 4 * 16], dim=1)  # theirs come in one row, the image's frame by frame
    x = numbers["x"].transpose(1, 2)
    found = unet(x, numbers["t"], text, numbers["fs"], image.unflatten(1, (4, 16)))
    expected = numbers["out"].transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_image_tokens_equal_the_authors() -> None:
    numbers, config = golden("videocrafter_resampler")
    resampler = Resampler(
        size=config["dim"],
        depth=config["depth"],
        head_size=config["dim_head"],
        heads=config["heads"],
        queries=config["num_queries"],
        frames=config["video_length"],
        embedding_size=config["embedding_dim"],
        out_size=config["output_dim"],
    )
    load_golden(resampler, numbers)
    found = resampler(numbers["x"])
    assert found.shape == (2, 4, 16, 32)
    torch.testing.assert_close(found.flatten(1, 2), numbers["out"], rtol=1e-5, atol=1e-5)


def test_parameters_equal_the_published_ones() -> None:
    """The list of names belongs to a network of 1.07 B parameters, without transformers at a quarter of the size; the
    published networks have them there too (attention_resolutions 4, 2, 1), and 1.44 B parameters (its README)."""
    listed = json.loads((HERE / "videocrafter_unet_state_dict_keys.json").read_text())
    with torch.device("meta"):
        fewer, published = UNet3D(attention_levels=(0, 1)), UNet3D()
    assert {key: list(value.shape) for key, value in fewer.state_dict().items()} == listed
    assert sum(value.numel() for value in published.parameters()) == 1_438_854_996
