"""Image tokens are CLIP's of the decoded image, from a folder or a DynamiCrafter checkpoint, and grey if left out."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_published import save_text_to_video
from helpers.tiny_vae import save_tiny_vae

from pipeline.errors import UserError
from pipeline.models.files.open_clip import IMAGE
from pipeline.models.image_encoder import DEVIATION, MEAN, load_image_encoder
from pipeline.models.vae import Vae, load_vae
from pipeline.settings import VideoModelSettings, load

BASE = load([])[0].model


def settings(path: str, width: int = 80) -> VideoModelSettings:
    assert BASE.unet3d is not None
    sizes = BASE.unet3d.model_copy(update={"image_encoder": path, "image_width": width})
    return BASE.model_copy(update={"unet3d": sizes})


LATENTS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Vae:
    return load_vae(save_tiny_vae(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_text_to_video(tmp_path_factory.mktemp("clip"))["image"]


@torch.no_grad()
def test_tokens_describe_the_decoded_image(vae: Vae, clip: str) -> None:
    encoder = load_image_encoder(settings(clip), vae)
    tokens = encoder(LATENTS, torch.tensor([True, False]))
    assert tokens.shape == (2, 5, 80)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    grey = ((torch.full((1, 3, 28, 28), 0.5) - mean) / deviation).float()
    torch.testing.assert_close(tokens[1:], encoder.clip(pixel_values=grey).last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens[:1], encoder(LATENTS)[:1])
    assert not torch.allclose(encoder(LATENTS)[0], encoder(LATENTS)[1], atol=1e-3)


@torch.no_grad()
def test_checkpoint_gives_the_tokens_of_its_folder(vae: Vae, clip: str, tmp_path: Path) -> None:
    """The folder's weights, laid out as open_clip's inside a DynamiCrafter checkpoint."""
    own = load_image_encoder(settings(clip), vae).clip.state_dict()
    layer = "encoder.layers.0."
    state = {
        "class_embedding": own["embeddings.class_embedding"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
        "proj": torch.ones(80, 8),
    }
    block = "transformer.resblocks.0."
    for kind in ("weight", "bias"):
        qkv = [own[f"{layer}self_attn.{name}_proj.{kind}"] for name in "qkv"]
        state |= {
            f"ln_pre.{kind}": own[f"pre_layrnorm.{kind}"],
            f"ln_post.{kind}": own[f"post_layernorm.{kind}"],
            f"{block}attn.in_proj_{kind}": torch.cat(qkv),
            f"{block}attn.out_proj.{kind}": own[f"{layer}self_attn.out_proj.{kind}"],
            f"{block}ln_1.{kind}": own[f"{layer}layer_norm1.{kind}"],
            f"{block}ln_2.{kind}": own[f"{layer}layer_norm2.{kind}"],
            f"{block}mlp.c_fc.{kind}": own[f"{layer}mlp.fc1.{kind}"],
            f"{block}mlp.c_proj.{kind}": own[f"{layer}mlp.fc2.{kind}"],
        }
    torch.save({"state_dict": {IMAGE + name: value for name, value in state.items()}}, tmp_path / "model.ckpt")
    found = load_image_encoder(settings(str(tmp_path / "model.ckpt")), vae)(LATENTS)
    # the folder's configuration names CLIP's quick GELU, a checkpoint's is OpenCLIP's exact one
    torch.testing.assert_close(found, load_image_encoder(settings(clip), vae)(LATENTS), atol=0.02, rtol=0.02)


def test_other_models_are_refused_in_one_line(vae: Vae, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    torch.save({"x": torch.ones(1)}, tmp_path / "model.ckpt")
    for path, message in {
        str(tmp_path): "has model_type t5, expected clip",
        str(tmp_path / "model.ckpt"): "holds no tensors named embedder.model.visual",
        "no such place": "no such file or folder",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            load_image_encoder(settings(path), vae)
        assert "\n" not in str(error.value)


def test_tokens_of_another_width_are_refused_when_loaded(vae: Vae, clip: str) -> None:
    with pytest.raises(UserError, match=r"tokens are 80 wide, but model.unet3d.image_width = 1280"):
        load_image_encoder(settings(clip, width=1280), vae)
