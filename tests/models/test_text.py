"""Captions embed as in transformers, from files in published formats; a hash of the files tells encoders apart."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.tiny_text import TOKENS, save_tiny_clip, save_tiny_t5

from pipeline.errors import UserError
from pipeline.models.files.text import find_text_encoder, text_identity
from pipeline.models.text import load_text_encoder
from pipeline.settings import TextSettings


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP text encoder; no test changes it."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def text(path: str, **changed: object) -> TextSettings:
    given = {"path": path, "tokenizer": None, "layer": -1, "max_length": TOKENS, "dtype": "float32"}
    return TextSettings.model_validate(given | changed)


def test_clip_embeddings_are_those_of_transformers_in_either_layer(clip: str) -> None:
    from transformers import AutoTokenizer, CLIPTextModel

    captions = ["a dog", "a dog and another dog and another dog", ""]
    tokens = AutoTokenizer.from_pretrained(clip)(captions, padding="max_length", max_length=TOKENS, truncation=True)
    model = CLIPTextModel.from_pretrained(clip).eval()
    with torch.no_grad():
        out = model(torch.tensor(tokens["input_ids"]), output_hidden_states=True)
        penultimate = model.final_layer_norm(out.hidden_states[-2])
    last = load_text_encoder(text(clip)).encode(captions)
    assert last.shape == (3, TOKENS, 16) and last.dtype == torch.float32
    assert torch.allclose(last, out.last_hidden_state, atol=1e-5)
    before = load_text_encoder(text(clip, layer=-2)).encode(captions)
    assert torch.allclose(before, penultimate, atol=1e-5) and not torch.allclose(before, last, atol=0.1)


def test_embedding_depends_on_its_own_caption_alone(clip: str) -> None:
    encoder = load_text_encoder(text(clip))
    assert torch.equal(encoder.encode(["a dog", "dog", "do"])[1:2], encoder.encode(["dog"]))


def test_t5_of_a_pipelines_folder_embeds_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    path = save_tiny_t5(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("a dog", padding="max_length", max_length=9)
    assert tokens["input_ids"] == [3, 4, 1, 0, 0, 0, 0, 0, 0]
    with torch.no_grad():
        model = T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
        expected = model(torch.tensor([tokens["input_ids"]])).last_hidden_state
    assert torch.allclose(load_text_encoder(text(path, max_length=9)).encode(["a dog"]), expected, atol=1e-5)
    assert load_text_encoder(text(path, max_length=9, layer=-2)).encode(["a dog"]).shape == (1, 9, 16)
    assert find_text_encoder(path).width == 16


def test_identity_depends_on_weights_and_tokenizer_alone(clip: str, tmp_path: Path) -> None:
    def changed(name: str, old: str, new: str) -> str:
        folder = tmp_path / f"{name}-{old.strip()}"
        shutil.copytree(clip, folder)
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new))
        return text_identity(find_text_encoder(str(folder)))

    own = text_identity(find_text_encoder(clip))
    assert changed("config.json", "quick_gelu", "gelu") != own
    assert changed("merges.txt", "d o", "d u") != own
    assert text_identity(find_text_encoder(save_tiny_clip(tmp_path / "seed", seed=1))) != own
    version = json.loads(Path(clip, "config.json").read_text())["transformers_version"]
    assert changed("config.json", version, "4.0.0") == own


def test_hub_name_gives_the_encoder_of_its_folder(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--someone--clip"
    shutil.copytree(clip, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert text_identity(find_text_encoder("someone/clip")) == text_identity(find_text_encoder(clip))
    assert load_text_encoder(text("someone/clip")).encode(["dog"]).shape == (1, TOKENS, 16)


def test_other_folders_are_refused_in_one_line(clip: str, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.json"):
        shutil.copytree(clip, tmp_path / name)
        (tmp_path / name / name).unlink()
    shutil.copytree(clip, tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name, expected in {
        "config.json": "No such file",
        "model.safetensors": r"no model\*.safetensors in",
        "vocab.json": "no tokenizer.json, vocab.json or spiece.model",
        "bert": "model_type bert, expected clip",
        "nowhere": "no such folder",
    }.items():
        with pytest.raises(UserError, match=rf"text.path = .*{expected}") as error:
            find_text_encoder(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"text.max_length = 77: .* reads only {TOKENS} tokens; set {TOKENS}"):
        load_text_encoder(text(clip, max_length=77))


def test_open_clip_in_a_checkpoint_pads_with_zeros_as_it_does(clip: str, tmp_path: Path) -> None:
    size, layers = 64, 2
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (516, size), "positional_embedding": (TOKENS, size)}
    shapes |= {"ln_final.weight": (size,), "ln_final.bias": (size,), "text_projection": (size, 8)}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        shapes |= {f"{block}ln_{i}.{kind}": (size,) for i in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{block}attn.in_proj_weight": (3 * size, size), f"{block}attn.in_proj_bias": (3 * size,)}
        shapes |= {f"{block}attn.out_proj.weight": (size, size), f"{block}attn.out_proj.bias": (size,)}
        shapes |= {f"{block}mlp.c_fc.weight": (2 * size, size), f"{block}mlp.c_fc.bias": (2 * size,)}
        shapes |= {f"{block}mlp.c_proj.weight": (size, 2 * size), f"{block}mlp.c_proj.bias": (size,)}
    random = torch.Generator().manual_seed(0)
    state = {f"cond_stage_model.model.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    path = str(tmp_path / "model.ckpt")
    encoder = load_text_encoder(text(path, tokenizer=clip, layer=-2))
    embedded = encoder.encode(["a dog"])
    assert embedded.shape == (1, TOKENS, size) and find_text_encoder(path, clip).width == size
    ids = encoder.tokenizer("dog", padding="max_length", max_length=5)["input_ids"]
    assert ids[0] == 514 and ids[2:] == [515, 0, 0]
    assert text_identity(find_text_encoder(path, clip)) != text_identity(find_text_encoder(clip))
    with pytest.raises(UserError, match=r"set text.tokenizer to a folder"):
        find_text_encoder(path)
    with pytest.raises(UserError, match=r"text.tokenizer = .*: no tokenizer.json"):
        find_text_encoder(path, str(tmp_path))
    torch.save({"state_dict": {"x": torch.ones(1)}}, path)
    with pytest.raises(UserError, match=r"holds no cond_stage_model.model.token_embedding.weight"):
        find_text_encoder(path, clip)
