"""Networks of the metrics from local files, at tiny sizes and in the layouts in which they are published."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_text import TOKENS, save_tiny_clip
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UserError
from pipeline.metrics.frechet import FeatureMoments, feature_moments, frechet_distance
from pipeline.metrics.networks import clip_pixels, detector_consistency, frame_consistency, load_network, network_hashes
from pipeline.models.image_encoder import DEVIATION, MEAN
from pipeline.settings import ROOT, EvaluateSettings, build, read_yaml
from pipeline.shipped.detector import FEATURES, Detector
from pipeline.shipped.synthetic import CLASSES, FPS, random_scene, render


class I3D(nn.Module):
    """The interface of i3d_torchscript.pt, and a network that says what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale and resize and return_features
        return torch.stack([x.mean((1, 2, 3, 4)), x[:, 0].amax((1, 2, 3)), x[:, :, 0].mean((1, 2, 3))], 1) * self.weight


def evaluate(**paths: object) -> EvaluateSettings:
    return build([read_yaml(ROOT / "ray_config.yaml")]).evaluate.model_copy(update=paths)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 4, 24, 32, 3), dtype=np.uint8)


def save_tiny_detector(folder: Path) -> str:
    torch.manual_seed(0)
    folder.mkdir()
    save_file(Detector(3).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    return str(folder)


def test_detector_gives_the_same_for_a_clip_alone_and_in_a_batch(tmp_path: Path, frames: np.ndarray) -> None:
    network = load_network("detector", evaluate(detector=save_tiny_detector(tmp_path / "detector")))
    whole, alone = network(frames, [""] * 3), network(frames[1:2], [""])
    assert whole["features"].shape == (3, FEATURES)
    np.testing.assert_allclose(whole["probabilities"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(whole["features"][1:2], alone["features"], atol=1e-5)


def test_i3d_sees_channels_first_and_grey_levels_to_255(tmp_path: Path, frames: np.ndarray) -> None:
    torch.jit.script(I3D()).save(str(tmp_path / "i3d.pt"))
    found = load_network("i3d", evaluate(i3d=str(tmp_path / "i3d.pt")))(frames, [""] * 3)["features"]
    expected = [frames.mean((1, 2, 3, 4)), frames[..., 0].max((1, 2, 3)), frames[:, 0].mean((1, 2, 3))]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5)


class Flow(nn.Module):
    """RAFT's interface: flows refined in turn. This one takes the difference of red for the flow to the right."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
        assert one.shape[2] % 8 == 0 and one.shape[3] % 8 == 0
        flow = (other - one)[:, :2] * torch.tensor([1.0, 0.0]).view(2, 1, 1)
        return [torch.zeros_like(flow), flow]


class Softmax(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4)).softmax(1)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4))


class Apart(nn.Module):
    """DreamSim's interface: a distance of each pair."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).abs().mean((1, 2, 3)) / 255


def scripted(folder: Path, name: str, module: nn.Module, frames: np.ndarray) -> np.ndarray:
    torch.jit.script(module).save(str(folder / name))
    found = load_network(name, evaluate(**{name: str(folder / name)}))(frames, [""] * len(frames))
    assert len(found) == 1
    return next(iter(found.values()))


def test_motion_score_takes_the_last_flow_without_padding(tmp_path: Path) -> None:
    clip = np.zeros((1, 4, 12, 20, 3), np.uint8)
    clip[0, :, :, :, 0] = np.array([0, 3, 6, 9])[:, None, None]
    assert scripted(tmp_path, "raft", Flow(), clip) == pytest.approx(3.0)


def test_conformity_is_one_minus_the_mean_distance_to_the_first_frame(tmp_path: Path) -> None:
    clip = np.zeros((2, 3, 8, 8, 3), np.uint8)
    clip[0, 1], clip[0, 2] = 51, 102  # 0.2 and 0.4 away
    found = scripted(tmp_path, "dreamsim", Apart(), clip)
    np.testing.assert_allclose(found[:, 0], [0.8, 1.0], rtol=1e-6)


def test_c3d_and_videomae_see_the_clip_and_c3d_must_give_probabilities(tmp_path: Path, frames: np.ndarray) -> None:
    means = frames.mean((1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(scripted(tmp_path, "videomae", Mean(), frames), means, rtol=1e-5)
    assert scripted(tmp_path, "c3d", Softmax(), frames).sum() == pytest.approx(len(frames), rel=1e-5)
    with pytest.raises(UserError, match="gives no probabilities"):
        scripted(tmp_path, "c3d", Mean(), frames)


def test_clipsim_equals_the_cosine_of_clip_itself(tmp_path: Path, frames: np.ndarray) -> None:
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    save_tiny_clip(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    captions = ["dog", "do do", "a red disc"]
    found = load_network("clip", evaluate(clip=str(tmp_path)))(frames, captions)["similarity"]
    tokens = AutoTokenizer.from_pretrained(tmp_path)(
        captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    for clip in range(3):
        pixels = (clip_pixels(torch.from_numpy(frames[clip]).permute(0, 3, 1, 2), 16) - mean) / deviation
        with torch.inference_mode():
            logits = model(pixel_values=pixels, **tokens).logits_per_image[:, clip]
            cosine = logits.mean() / model.logit_scale.exp()
        assert found[clip, 0] == pytest.approx(float(cosine), abs=1e-5)
    assert np.ptp(found) > 1e-3


def test_frame_consistency_is_the_mean_cosine_of_neighbours() -> None:
    there, up = [1.0, 0.0], [0.0, 2.0]
    clips = torch.tensor([[there, there, there], [there, up, there], [there, there, up]])
    assert frame_consistency(clips)[:, 0].tolist() == pytest.approx([1, 0, 0.5])
    assert frame_consistency(clips[:, :1])[:, 0].tolist() == [1, 1, 1]


def test_detector_finds_motion_more_consistent_than_flicker() -> None:
    random = np.random.default_rng(0)
    moving = np.stack([render(random_scene("SlideLeft", np.random.default_rng(1)), i / 25, 64, 64) for i in range(6)])
    scenes = [random_scene("SlideLeft", np.random.default_rng(seed)) for seed in random.integers(99, size=6)]
    flickering = np.stack([render(scene, 0, 64, 64) for scene in scenes])
    found = detector_consistency("shipped:detector")(np.stack([moving, flickering, moving[[0] * 6]]), [""] * 3)
    consistency = found["consistency"][:, 0]
    assert consistency[1] < consistency[0] < consistency[2] == pytest.approx(1)


def test_clip_sees_the_middle_of_a_wide_picture() -> None:
    wide = torch.zeros(1, 3, 8, 24, dtype=torch.uint8)
    wide[..., 8:16] = 255
    assert clip_pixels(wide, 8).min() == 1
    assert clip_pixels(wide.repeat(1, 1, 2, 1), 8).shape == (1, 3, 8, 8)


def test_hash_depends_on_the_weights_alone(tmp_path: Path) -> None:
    settings = evaluate(detector=save_tiny_detector(tmp_path / "detector"))
    before = network_hashes(["detector"], settings)
    (tmp_path / "detector" / "notes.txt").write_text("not the weights")
    assert network_hashes(["detector"], settings) == before
    with (tmp_path / "detector" / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    assert network_hashes(["detector"], settings) != before


def test_missing_and_unreadable_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.i3d = /nowhere: expected a TorchScript file"):
        network_hashes(["i3d"], evaluate(i3d="/nowhere"))
    with pytest.raises(UserError, match=r"evaluate\.clip = .*: expected a folder with \*\.safetensors"):
        network_hashes(["clip"], evaluate(clip=str(tmp_path)))
    (tmp_path / "i3d.pt").write_text("no network")
    with pytest.raises(UserError, match="no TorchScript file"):
        load_network("i3d", evaluate(i3d=str(tmp_path / "i3d.pt")))
    with pytest.raises(UserError, match="no detector there"):
        load_network("detector", evaluate(detector=str(tmp_path)))
    with pytest.raises(UserError, match=r"evaluate\.clip"):
        load_network("clip", evaluate(clip=str(tmp_path)))


def test_shipped_detector_puts_shuffled_and_still_clips_far_away() -> None:
    network = load_network("detector", evaluate(detector="shipped:detector"))
    random = np.random.default_rng(7)

    def scenes() -> np.ndarray:
        made = [random_scene(motion, random) for motion in CLASSES for _ in range(4)]
        return np.stack([[render(scene, (18 + frame) / FPS, 48, 48) for frame in range(16)] for scene in made])

    def moments(clips: np.ndarray) -> FeatureMoments:
        return feature_moments(network(clips, [])["features"])

    true, other = moments(scenes()), scenes()
    near = frechet_distance(true, moments(other), "N")
    shuffled = frechet_distance(true, moments(other[:, random.permutation(16)]), "N")
    still = frechet_distance(true, moments(other[:, :1].repeat(16, 1)), "N")
    assert min(shuffled, still) > 2 * near
