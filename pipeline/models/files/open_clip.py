"""Read open_clip's weights inside published video checkpoints into transformers' CLIP.

VideoCrafter's and DynamiCrafter's checkpoints contain OpenCLIP ViT-H/14: its text half under `cond_stage_model.model.`,
and both halves under `embedder.model.`, whose image half we use. Nothing here needs open_clip.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..checkpoints.weights import State, WeightsMismatch, load_strict

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPVisionModel

Encoder = TypeVar("Encoder", bound=torch.nn.Module)

TEXT, IMAGE = "cond_stage_model.model.", "embedder.model.visual."
TEXT_HEAD, IMAGE_HEAD = 64, 80  # widths of attention heads in ViT-H/14; no tensor reveals them
# names of tensors that do not change a token's value
NOT_FOR_TOKENS = ("attn_mask", "text_projection", "logit_scale", "logit_bias", "proj", "visual.")
BLOCK_NAME = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
# open_clip's name, or its beginning, within a block or outside -> transformers'
NAMES = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",  # transformers' name, with its typo
    "ln_post.": "post_layernorm.",
    "ln_final.": "final_layer_norm.",
}


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """Rename the tensors of one half, given without prefix, as transformers does; unknown names stay."""
    renamed: State = {}
    for name, value in state.items():
        if name.startswith(NOT_FOR_TOKENS):
            continue
        block = BLOCK_NAME.fullmatch(name)
        layer, part = (f"encoder.layers.{block[1]}.", block[2]) if block else ("", name)
        if part.startswith("attn.in_proj_"):
            for projection, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}self_attn.{projection}_proj.{part.removeprefix('attn.in_proj_')}"] = rows
        else:
            old = next((old for old in NAMES if part.startswith(old)), "")
            renamed[layer + NAMES.get(old, "") + part.removeprefix(old)] = value
    return renamed


def text_model(checkpoint: Mapping[str, Tensor], name: str) -> "CLIPTextModel":
    """Build the text encoder inside `checkpoint`, called `name` in messages, in eval mode. Raises WeightsMismatch."""
    from transformers import CLIPTextConfig, CLIPTextModel

    state, common = _half(checkpoint, TEXT, name)
    words, size = _shape(state, "embeddings.token_embedding.weight", name)
    config = CLIPTextConfig(
        **common,
        vocab_size=words,
        hidden_size=size,
        num_attention_heads=max(1, size // TEXT_HEAD),
        max_position_embeddings=_shape(state, "embeddings.position_embedding.weight", name)[0],
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=0,
    )
    return _filled(CLIPTextModel, config, state, name)


def image_model(checkpoint: Mapping[str, Tensor], name: str) -> "CLIPVisionModel":
    """Build the image encoder inside `checkpoint`, called `name` in messages, in eval mode. Raises WeightsMismatch."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    state, common = _half(checkpoint, IMAGE, name)
    size, _, patch, _ = _shape(state, "embeddings.patch_embedding.weight", name)
    places = _shape(state, "embeddings.position_embedding.weight", name)[0] - 1  # without the class token
    config = CLIPVisionConfig(
        **common,
        hidden_size=size,
        num_attention_heads=max(1, size // IMAGE_HEAD),
        image_size=round(places**0.5) * patch,
        patch_size=patch,
    )
    return _filled(CLIPVisionModel, config, state, name)


def _half(checkpoint: Mapping[str, Tensor], prefix: str, name: str) -> tuple[State, dict[str, Any]]:
    """Return one half of the checkpoint under transformers' names, and the sizes that both configurations have."""
    half = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
    if not half:
        raise WeightsMismatch(f"{name}: holds no tensors named {prefix}..., which VideoCrafter's checkpoints hold")
    state = to_transformers(half)
    return state, {
        "intermediate_size": _shape(state, "encoder.layers.0.mlp.fc1.weight", name)[0],
        "num_hidden_layers": len({key.split(".")[2] for key in state if key.startswith("encoder.layers.")}),
        "hidden_act": "gelu",
    }


def _shape(state: State, key: str, name: str) -> list[int]:
    if key not in state:
        raise WeightsMismatch(f"{name}: {key} (in transformers' names) is missing from its CLIP; get the file again")
    return list(state[key].shape)


def _filled(kind: Callable[[Any], Encoder], config: Any, state: State, name: str) -> Encoder:
    """Build a model on the meta device and fill it with the weights of `state`."""
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    for key, buffer in model.named_buffers():
        assert key.endswith("position_ids"), f"{key} would have no value"
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    load_strict(model, state, name)
    return model.eval().requires_grad_(False)
