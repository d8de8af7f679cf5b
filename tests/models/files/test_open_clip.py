"""open_clip's weights give the same in transformers as in open_clip's own layers, written here with PyTorch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F_

from pipeline.models.checkpoints.weights import WeightsMismatch
from pipeline.models.files.open_clip import IMAGE, TEXT, image_model, text_model
from pipeline.models.text import final_norm

LAYERS, WORDS, PLACES = 2, 20, 6


class ResidualBlock(nn.Module):
    """A block of open_clip's transformer, under its names."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attn = nn.MultiheadAttention(size, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(size, 2 * size), "c_proj": nn.Linear(2 * size, size)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp["c_proj"](F_.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return out


class Transformer(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(size, heads) for _ in range(LAYERS))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(WORDS, 128)
        self.positional_embedding = nn.Parameter(torch.randn(PLACES, 128))
        self.transformer, self.ln_final = Transformer(128, 2), nn.LayerNorm(128)
        self.text_projection, self.logit_scale = nn.Parameter(torch.randn(128, 8)), nn.Parameter(torch.ones(()))

    def penultimate(self, tokens: Tensor) -> Tensor:
        """Run all blocks but the last and the final norm, as Stable Diffusion 2 does."""
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((PLACES, PLACES), -torch.inf).triu(1)
        for block in list(self.transformer.resblocks)[:-1]:
            x = block(x, mask)
        out: Tensor = self.ln_final(x)
        return out


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(160))
        self.positional_embedding = nn.Parameter(torch.randn(5, 160))
        self.conv1 = nn.Conv2d(3, 160, 4, stride=4, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(160), nn.LayerNorm(160)
        self.transformer = Transformer(160, 2)
        self.proj = nn.Parameter(torch.randn(160, 8))

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return the output of the last block, before the last norm, as DynamiCrafter does."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x, None)
        return x


def checkpoint() -> tuple[Text, Image, dict[str, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text, image = Text().eval(), Image().eval()
        for parameter in (*text.parameters(), *image.parameters()):
            nn.init.normal_(parameter, std=0.3)
    state = {TEXT + name: value for name, value in text.state_dict().items()}
    state |= {IMAGE + name: value for name, value in image.state_dict().items()}
    return text, image, {**state, "model.diffusion_model.out.2.bias": torch.ones(4)}


TEXT_MODEL, IMAGE_MODEL, CHECKPOINT = checkpoint()


@torch.no_grad()
def test_penultimate_text_layer_equals_open_clips() -> None:
    tokens = torch.tensor([[18, 3, 7, 19, 0, 0], [18, 5, 5, 5, 5, 19]])
    model = text_model(CHECKPOINT, "crafter.ckpt")
    found = final_norm(model)(model(input_ids=tokens, output_hidden_states=True).hidden_states[-2])
    torch.testing.assert_close(found, TEXT_MODEL.penultimate(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_image_tokens_equal_open_clips() -> None:
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = image_model(CHECKPOINT, "crafter.ckpt")(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found, IMAGE_MODEL.tokens(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [text_model, image_model])
def test_wrong_encoder_is_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(WeightsMismatch, match="holds no tensors named"):
        make({"model.diffusion_model.out.2.bias": torch.ones(4)}, "crafter.ckpt")
    for part, report in (("ln_1.weight", r"2 missing|missing"), ("mlp.c_fc.weight", "is missing from its CLIP")):
        broken = {name: value for name, value in CHECKPOINT.items() if part not in name}
        with pytest.raises(WeightsMismatch, match=report) as error:
            make(broken, "crafter.ckpt")
        assert "\n" not in str(error.value)
    odd = {**CHECKPOINT, f"{TEXT}adapter.weight": torch.ones(1), f"{IMAGE}adapter.weight": torch.ones(1)}
    with pytest.raises(WeightsMismatch, match=r"1 unexpected \(adapter.weight\)"):
        make(odd, "crafter.ckpt")
