"""A VAE has the same latents and the same hash in every layout in which Stable Diffusion's is published."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.files.vae import SD_SCALING_FACTOR, derive_config, to_diffusers, vae_identity
from pipeline.models.vae import load_vae

Shapes = dict[str, tuple[int, ...]]
FILE = "diffusion_pytorch_model.safetensors"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
# of another part of a latent diffusion checkpoint
FOREIGN = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2), "betas": torch.ones(3)}


def ldm_layer(name: str, inside: int, outside: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outside, inside, kernel, kernel), f"{name}.bias": (outside,)}


def ldm_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def ldm_resnet(name: str, inside: int, outside: int) -> Shapes:
    shapes = ldm_norm(f"{name}.norm1", inside) | ldm_layer(f"{name}.conv1", inside, outside, 3)
    shapes |= ldm_norm(f"{name}.norm2", outside) | ldm_layer(f"{name}.conv2", outside, outside, 3)
    return shapes | (ldm_layer(f"{name}.nin_shortcut", inside, outside, 1) if inside != outside else {})


def ldm_middle(name: str, width: int) -> Shapes:
    shapes = ldm_resnet(f"{name}.mid.block_1", width, width) | ldm_resnet(f"{name}.mid.block_2", width, width)
    for layer in ("q", "k", "v", "proj_out"):
        shapes |= ldm_layer(f"{name}.mid.attn_1.{layer}", width, width, 1)
    return shapes | ldm_norm(f"{name}.mid.attn_1.norm", width)


def ldm_shapes(widths: list[int], blocks: int) -> Shapes:
    """Return names and shapes of latent diffusion's first stage: `widths` by level, `blocks` per level."""
    shapes = ldm_layer("encoder.conv_in", 3, widths[0], 3) | ldm_layer("decoder.conv_in", 4, widths[-1], 3)
    width = widths[0]
    for level, outside in enumerate(widths):
        for block in range(blocks):
            shapes |= ldm_resnet(f"encoder.down.{level}.block.{block}", width, outside)
            width = outside
        if level < len(widths) - 1:
            shapes |= ldm_layer(f"encoder.down.{level}.downsample.conv", width, width, 3)
    shapes |= ldm_middle("encoder", width) | ldm_middle("decoder", width)
    for level, outside in reversed(list(enumerate(widths))):
        for block in range(blocks + 1):
            shapes |= ldm_resnet(f"decoder.up.{level}.block.{block}", width, outside)
            width = outside
        if level:
            shapes |= ldm_layer(f"decoder.up.{level}.upsample.conv", width, width, 3)
    shapes |= ldm_norm("encoder.norm_out", widths[-1]) | ldm_layer("encoder.conv_out", widths[-1], 8, 3)
    shapes |= ldm_norm("decoder.norm_out", width) | ldm_layer("decoder.conv_out", width, 3, 3)
    return shapes | ldm_layer("quant_conv", 8, 8, 1) | ldm_layer("post_quant_conv", 4, 4, 1)


def ldm_name(name: str, levels: int) -> str:
    """Return latent diffusion's name for a tensor of diffusers."""
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    for new, old in [
        ("down_blocks", "down"),
        ("resnets", "block"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_norm_out", "norm_out"),
    ]:
        name = name.replace(new, old)
    return name


def to_ldm(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    def kernel(name: str, tensor: Tensor) -> Tensor:
        return tensor[:, :, None, None] if ".to_" in name and tensor.ndim == 2 else tensor

    return {ldm_name(name, levels): kernel(name, tensor).contiguous() for name, tensor in state.items()}


def autoencoder(widths: list[int], blocks: int) -> AutoencoderKL:
    levels = len(widths)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=blocks,
        latent_channels=4,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder; no test changes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("vae")
        autoencoder([32, 32, 64, 64], 1).save_pretrained(path)
    return path


def posterior(path: Path | str) -> Tensor:
    frames = torch.randint(0, 256, (2, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.stack(load_vae(str(path)).encode(frames))


def write(path: Path, layout: str, state: dict[str, Tensor]) -> Path:
    """Write the weights in one of the published layouts; return the path for vae.path."""
    ldm = to_ldm(state, 4)
    whole = {f"first_stage_model.{name}": tensor for name, tensor in ldm.items()} | FOREIGN
    if layout == "videocrafter.ckpt":
        torch.save({"state_dict": whole}, path / layout)
    elif layout == "stable-diffusion.safetensors":
        save_file(whole, path / layout)
    elif layout == "first-stage.ckpt":
        torch.save({"state_dict": ldm | {"loss.logvar": torch.ones(())}}, path / layout)
    elif layout == "first-stage.safetensors":
        save_file(ldm, path / layout)
    elif layout == FILE:
        save_file(state, path / layout)
    elif layout == "diffusion_pytorch_model.bin":
        torch.save(state, path / layout)
        return path
    else:
        assert layout == "old names"
        old = {}
        for name, tensor in state.items():
            for new, before in OLD.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
            old[name] = tensor
        assert sum("proj_attn" in name for name in old) == 4
        save_file(old, path / FILE)
        return path
    return path / layout


@pytest.mark.parametrize(
    "layout",
    [
        "videocrafter.ckpt",
        "stable-diffusion.safetensors",
        "first-stage.ckpt",
        "first-stage.safetensors",
        "diffusion_pytorch_model.bin",
        FILE,
        "old names",
    ],
)
def test_every_layout_gives_the_same_latents_and_the_same_identity(folder: Path, tmp_path: Path, layout: str) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    path = write(tmp_path, layout, load_file(folder / FILE))
    assert torch.equal(posterior(path), posterior(folder))
    assert vae_identity(str(path)) == vae_identity(str(folder)) == (load_vae(str(path)).weights_hash, SD_SCALING_FACTOR)
    if layout == "old names":
        theirs = AutoencoderKL.from_pretrained(path)
        assert theirs.state_dict().keys() == load_vae(str(path)).module.state_dict().keys()
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in load_file(folder / FILE).items())


def test_every_key_of_the_real_vae_maps_both_ways() -> None:
    widths = [128, 256, 512, 512]
    with torch.device("meta"):
        real = autoencoder(widths, 2).state_dict()
        shapes = ldm_shapes(widths, 2)
        published = {f"first_stage_model.{name}": torch.empty(shape) for name, shape in shapes.items()}
    assert len(shapes) == 248
    assert {name: tuple(tensor.shape) for name, tensor in to_ldm(real, 4).items()} == shapes
    converted = to_diffusers(published | FOREIGN)
    assert {name: t.shape for name, t in converted.items()} == {name: t.shape for name, t in real.items()}
    config = derive_config(converted)
    assert (config["block_out_channels"], config["layers_per_block"], config["latent_channels"]) == (widths, 2, 4)


def test_scaling_factor_comes_from_the_configuration_or_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / FILE)
    named = to_ldm(weights, 4) | {"scale_factor": torch.tensor(0.5)}
    torch.save({"state_dict": named}, tmp_path / "a.ckpt")
    assert load_vae(str(tmp_path / "a.ckpt")).scaling_factor == 0.5
    assert load_vae(str(folder)).scaling_factor == SD_SCALING_FACTOR


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_identity_depends_on_the_values_alone(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    rounded = {name: tensor.to(dtype) for name, tensor in load_file(folder / FILE).items()}
    for name, state in {"half": rounded, "single": {name: t.float() for name, t in rounded.items()}}.items():
        shutil.copytree(folder, tmp_path / name)
        save_file(state, tmp_path / name / FILE)
    assert vae_identity(str(tmp_path / "half")) == vae_identity(str(tmp_path / "single")) != vae_identity(str(folder))


@pytest.mark.parametrize("inside", ["", "vae/"])
def test_hub_name_gives_the_vae_of_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--someone--sd-vae"
    shutil.copytree(folder, repository / "snapshots" / commit / inside)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name = f"someone/sd-vae/{inside}".rstrip("/")
    assert vae_identity(name) == vae_identity(str(folder))
    assert torch.equal(posterior(name), posterior(folder))
    for other in ("someone/other", "some--one/what..ever"):
        with pytest.raises(UserError, match=rf"vae.path = {re.escape(other)}: no AutoencoderKL .*nor on the hub"):
            vae_identity(other)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('sprung', 'w')",)


def test_other_files_are_refused_in_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"first_stage_model.x": Trap()}}, tmp_path / "trap.ckpt")
    save_file(FOREIGN, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((folder / FILE).read_bytes()[:-100])
    lacking = to_ldm(load_file(folder / FILE), 4)
    del lacking["encoder.mid.attn_1.q.weight"]
    torch.save(lacking, tmp_path / "lacking.ckpt")
    shutil.copytree(folder, tmp_path / "tiny")
    (tmp_path / "tiny" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    for name, expected in {
        "trap.ckpt": "is not plain weights",
        "other.safetensors": "holds no tensors named encoder",
        "cut.safetensors": "not a whole safetensors file",
        "lacking.ckpt": r"1 missing \(encoder.mid_block.attentions.0.to_q.weight\)",
        "tiny": "has _class_name AutoencoderTiny",
    }.items():
        with pytest.raises(UserError, match=expected) as error:
            load_vae(str(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value)
    assert not (tmp_path / "sprung").exists()


def test_shipped_teacher_was_trained_on_the_shipped_vae() -> None:
    from pipeline.models.checkpoints.exports import load_export
    from pipeline.models.files.paths import shipped_path

    recorded = load_export(shipped_path("shipped:teacher"))[1]["vae"]
    assert (recorded["weights_hash"], recorded["scaling_factor"]) == vae_identity("shipped:vae")
