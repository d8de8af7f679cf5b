"""Exports appear whole or not at all; checkpoints fit or are refused in one line; surgery keeps the output."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_networks import LATTE, randomise
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.checkpoints import exports
from pipeline.models.checkpoints.exports import load_export, save_export
from pipeline.models.checkpoints.latte import CLASS_TABLE, bridge_state_from_diffusion, remap_classes
from pipeline.models.checkpoints.published import load_published
from pipeline.models.checkpoints.weights import WeightsError, WeightsMismatch, load_strict
from pipeline.models.latte import Latte

SMALL = {**LATTE, "num_classes": 2}
X = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
T, Y = torch.tensor([1.5, 900.0]), torch.tensor([0, 2])
STATE = {"one": torch.ones(2, 3), "two": torch.arange(4)}


def trained(**change: Any) -> Latte:
    """A small Latte with random weights everywhere."""
    return randomise(Latte(**{**SMALL, **change}), seed=1, std=0.2).eval()


def bridge_from(teacher: Latte, **change: Any) -> Latte:
    target = Latte(**{**SMALL, **change})
    load_strict(target, bridge_state_from_diffusion(teacher.state_dict(), target), "teacher")
    return target.eval()


# --- exports


def test_export_keeps_weights_and_config(tmp_path: Path) -> None:
    folder = save_export(tmp_path / "runs" / "model", STATE, {"size": "S", "frames": [16]})
    state, config = load_export(folder)
    assert config == {"size": "S", "frames": [16]}
    assert {name: value.tolist() for name, value in state.items()} == {n: v.tolist() for n, v in STATE.items()}
    assert sorted(file.name for file in folder.parent.iterdir()) == ["model"]


def test_export_copies_tied_and_strided_weights(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state, _ = load_export(save_export(tmp_path / "model", {"a": shared, "b": shared.t()}, {}))
    assert torch.equal(state["a"].t(), state["b"])


def test_second_export_replaces_the_first(tmp_path: Path) -> None:
    save_export(tmp_path / "model", STATE, {"step": 1})
    save_export(tmp_path / "model", STATE, {"step": 2})
    assert load_export(tmp_path / "model")[1] == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_failed_export_leaves_the_first_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_export(tmp_path / "model", STATE, {"step": 1})

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(exports, "save_file", full_disk)
    for name in ("model", "other"):
        with pytest.raises(OSError, match="no space"):
            save_export(tmp_path / name, STATE, {"step": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert load_export(tmp_path / "model")[1] == {"step": 1}


def test_export_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match="not an export"):
        save_export(tmp_path, STATE, {})
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_missing_or_damaged_file_is_named(tmp_path: Path, damaged: str) -> None:
    folder = save_export(tmp_path / "model", STATE, {})
    (folder / damaged).write_text("{")
    with pytest.raises(UserError, match=damaged):
        load_export(folder)
    (folder / damaged).unlink()
    with pytest.raises(UserError, match=f"{damaged} is missing"):
        load_export(folder)


# --- published checkpoints


@pytest.mark.parametrize("wrapper", [None, "ema", "model", "state_dict", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "nwarp_model."])
def test_published_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in STATE.items()}
    torch.save({wrapper: state, "steps": 3} if wrapper else state, tmp_path / "model.pt")
    assert set(load_published(tmp_path / "model.pt")) == set(STATE)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    checkpoint = {"model": {"w": torch.zeros(1)}, "ema": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(checkpoint, tmp_path / "model.pt")
    assert load_published(tmp_path / "model.pt")["w"].item() == 1


def test_published_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"module." + name: value for name, value in STATE.items()}, tmp_path / "model.safetensors")
    assert set(load_published(tmp_path / "model.safetensors")) == set(STATE)


class Malicious:
    """Unpickling it runs code: it would create the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_checkpoint_with_code_is_refused_unrun(tmp_path: Path) -> None:
    torch.save({"model": Malicious(tmp_path / "owned")}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="convert it to safetensors") as error:
        load_published(tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(1)]])
def test_checkpoint_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="holds no tensors"):
        load_published(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_missing_or_truncated_checkpoint_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="is missing"):
        load_published(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(WeightsError, match=name):
        load_published(tmp_path / name)


def test_wrong_checkpoint_is_refused_in_one_line() -> None:
    state = dict(Latte(**SMALL).state_dict())
    del state["t_embedder.mlp.0.bias"]
    state["extra"] = torch.ones(1)
    state[CLASS_TABLE] = torch.zeros(11, 16)
    target = trained()
    before = target.x_embedder.get_parameter("proj.weight").clone()
    with pytest.raises(WeightsMismatch) as error:
        load_strict(target, state, "teacher.pt")
    message = str(error.value)
    assert message.startswith("teacher.pt does not fit")
    assert "1 missing (t_embedder.mlp.0.bias)" in message
    assert "1 unexpected (extra)" in message
    assert f"1 mis-shaped ({CLASS_TABLE} [11, 16] for [3, 16])" in message
    assert "\n" not in message
    assert torch.equal(target.x_embedder.get_parameter("proj.weight"), before)


def test_report_of_many_keys_names_the_first_few() -> None:
    with pytest.raises(WeightsMismatch) as error:
        load_strict(Latte(**SMALL), {}, "empty")
    assert "missing (pos_embed, temp_embed, x_embedder.proj.weight, ...)" in str(error.value)
    assert len(str(error.value)) < 300


# --- from diffusion to bridge


@torch.no_grad()
def test_surgery_keeps_the_mean_and_drops_sigma() -> None:
    teacher = trained(learn_sigma=True)
    torch.testing.assert_close(bridge_from(teacher)(X, T, Y), teacher(X, T, Y)[:, :, :4])


@torch.no_grad()
def test_surgery_gives_new_channels_no_effect_at_first() -> None:
    teacher = trained()
    bridge = bridge_from(teacher, in_channels=8)
    torch.testing.assert_close(bridge(torch.cat([X, 3 - X], dim=2), T, Y), teacher(X, T, Y))


def test_surgery_keeps_the_times_of_the_clip() -> None:
    teacher = trained()
    bridge = bridge_from(teacher, num_frames=4)
    assert torch.equal(bridge.temp_embed[:, 1:], teacher.temp_embed)
    assert torch.equal(bridge.temp_embed[:, 0], teacher.temp_embed[:, 0])


@torch.no_grad()
def test_surgery_keeps_the_output_of_a_static_clip() -> None:
    """A clip of one frame has the image frame as its twin, and attention to a twin changes nothing."""
    teacher = trained(num_frames=1, learn_sigma=True)
    bridge = bridge_from(teacher, num_frames=2)
    frame = X[:, :1]
    expected = teacher(frame, T, Y)[:, :, :4]
    torch.testing.assert_close(bridge(frame.expand(-1, 2, -1, -1, -1), T, Y), expected.expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_frames": 5}, "3 frames cannot start"), ({"in_channels": 3}, "4 input channels cannot start")],
)
def test_surgery_on_the_wrong_model_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(WeightsMismatch, match=message):
        bridge_state_from_diffusion(trained().state_dict(), Latte(**{**SMALL, **change}))


def test_surgery_on_something_else_is_refused() -> None:
    with pytest.raises(WeightsMismatch, match="not the weights of a Latte"):
        bridge_state_from_diffusion(STATE, Latte(**SMALL))


# --- classes


def class_state() -> dict[str, Tensor]:
    return {CLASS_TABLE: torch.tensor([[1.0], [2.0], [0.0]]), "other": torch.ones(1)}


def test_classes_are_matched_by_name() -> None:
    state, kept = remap_classes(class_state(), ["archery", "bowling"], ["bowling", "surfing", "archery"])
    assert state[CLASS_TABLE].flatten().tolist() == [2, 0, 1, 0]
    assert kept == 2
    assert torch.equal(state["other"], torch.ones(1))


def test_class_names_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsMismatch, match="3 rows"):
        remap_classes(class_state(), ["archery"], ["archery"])
    with pytest.raises(WeightsMismatch, match="has no classes"):
        remap_classes(STATE, ["archery"], ["archery"])
    with pytest.raises(WeightsError, match="twice: archery"):
        remap_classes(class_state(), ["archery", "archery"], ["archery"])


def test_config_is_plain_json(tmp_path: Path) -> None:
    folder = save_export(tmp_path / "model", STATE, {"b": 1, "a": None})
    assert list(json.loads((folder / "config.json").read_text())) == ["b", "a"]
