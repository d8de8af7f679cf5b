"""The worked examples of CONTRIBUTING.md run."""

import re
import textwrap
from pathlib import Path
from typing import Any

import torch

from pipeline.bridge import samplers
from pipeline.bridge.schedule import bridge_grid, gmax, sampling_indices
from pipeline.data.plan import sources
from pipeline.models import image_to_video
from pipeline.settings import DataSettings

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^ *```python\n(.*?)^ *```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)


def example(name: str, **names: Any) -> Any:
    """What the block that defines `name` defines, run among `names`."""
    (block,) = [block for block in BLOCKS if re.search(rf"^ *(?:def|class) {name}\b", block, re.MULTILINE)]
    exec(textwrap.dedent(block), names)
    return names[name]


def test_example_of_a_source_lists_its_videos(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4\n\ns3://bucket/b.mp4\n")
    listing = example("listing", **vars(sources))
    found = list(listing(DataSettings.model_construct(path=f"{tmp_path}/list.txt")))
    assert [(video.uri, video.video) for video in found] == [
        (f"{tmp_path}/a.mp4", "a.mp4"),
        ("s3://bucket/b.mp4", "s3://bucket/b.mp4"),
    ]


def test_example_of_a_backbone_predicts_a_clip_from_its_conditions() -> None:
    plain = example("Plain", torch=torch, nn=torch.nn, Tensor=torch.Tensor)
    wrapper = example("PlainImageToVideo", Plain=plain, **vars(image_to_video))
    model = wrapper(plain(channels=4, width=8, text_size=6))
    model.initialise(0)
    given = {"image_latent": torch.ones(2, 4, 8, 8), "text": torch.ones(2, 5, 6)}
    assert set(given) == set(model.conditions)
    z = torch.ones(2, 3, 4, 8, 8)
    assert model(z, torch.zeros(2), torch.zeros(2, dtype=torch.int64), **given).shape == z.shape


def test_example_of_a_sampler_returns_the_clean_estimate() -> None:
    renoise = example("renoise", **vars(samplers))
    clip, prior = torch.full((1, 2, 3, 4, 4), 2.0), torch.ones(1, 2, 3, 4, 4)
    asked: list[int] = []

    def noise(k: int) -> torch.Tensor:
        asked.append(k)
        return torch.zeros_like(prior)

    table = bridge_grid(gmax())
    assert torch.equal(renoise(lambda z, s: clip, table, prior, sampling_indices(4), noise), clip)
    assert asked == [0, 1, 2]
