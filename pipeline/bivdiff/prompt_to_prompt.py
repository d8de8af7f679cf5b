"""Prompt-to-Prompt (Hertz et al. 2022): edit a frame by showing its network the attention that its source has.

The batch of a pipeline is N sources and N edited frames, with guidance twice: unconditional, then conditional. In the
first steps, the edited frames attend to words and to themselves as their sources do; only the words differ.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..sampling.items import InputRejected

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from diffusers.models.attention_processor import Attention
    from transformers import CLIPTokenizer

# places of the largest layers whose self-attention is injected, as in the authors' code: half of 64 x 64 latents
LARGEST = 32**2


class Edit(NamedTuple):
    """Attention of an edited token: source @ mapping + own * itself, over tokens of the prompts, padded."""

    mapping: Tensor  # (L, L): from source tokens (rows) to edited ones
    own: Tensor  # (L,): 1 for tokens that the source does not have


def edit_by(mapping: Tensor) -> Edit:
    """The edit of a mapping: a token without a source keeps its own attention."""
    return Edit(mapping, (mapping.sum(0) == 0).float())


def replace(tokenizer: CLIPTokenizer, source: str, edited: str) -> Edit:
    """Give each word the attention of the source's word in its place, shared out where their tokens differ in number.

    Raises InputRejected for prompts of different numbers of words.
    """
    words = source.split(), edited.split()
    if len(words[0]) != len(words[1]):
        raise InputRejected(
            f"source_prompt has {len(words[0])} words, prompt {len(words[1])}; bivdiff.edit replace needs as many"
        )
    length = tokenizer.model_max_length
    mapping = torch.zeros(length, length)
    mapping[0, 0] = 1  # the token that begins
    row = column = 1
    for one, other in zip(*words, strict=True):
        rows, columns = (len(tokenizer(word, add_special_tokens=False).input_ids) for word in (one, other))
        block = torch.eye(rows) if rows == columns else torch.full((rows, columns), 1 / columns)
        mapping[row : row + rows, column : column + columns] = block[: length - row, : length - column]
        row, column = min(row + rows, length), min(column + columns, length)
    rest = length - max(row, column)  # the token that ends, and padding
    mapping[row : row + rest, column : column + rest] = torch.eye(rest)
    return edit_by(mapping)


def refine(tokenizer: CLIPTokenizer, source: str, edited: str) -> Edit:
    """Give tokens that both prompts have, in order, the source's attention; added tokens keep their own."""
    length = tokenizer.model_max_length
    tokens = [tokenizer(text, padding="max_length", truncation=True).input_ids for text in (source, edited)]
    mapping = torch.zeros(length, length)
    for block in difflib.SequenceMatcher(a=tokens[0], b=tokens[1], autojunk=False).get_matching_blocks():
        rows, columns = (torch.arange(start, start + block.size) for start in (block.a, block.b))
        mapping[rows, columns] = 1
    return edit_by(mapping)


EDITS = {"replace": replace, "refine": refine}


class EditedAttention:
    """A processor of a diffusers attention layer in a transformer block."""

    def __init__(self, edit: Edit, cross_replace: float, self_replace: float, steps: int) -> None:
        """`cross_replace` and `self_replace`: shares of the steps that inject attention to words and to places."""
        self.edit, self.cross_replace, self.self_replace = edit, cross_replace, self_replace
        self.steps, self.done = steps, 0

    def count(self, pipe: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Count a step, as a pipeline's callback_on_step_end."""
        self.done = step + 1
        return tensors

    def is_within(self, share: float) -> bool:
        """Whether sampling is still in this share, 0 to 1, of its steps."""
        return self.done < share * self.steps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: object,
    ) -> Tensor:
        """Attend as diffusers' AttnProcessor does, with the source's attention injected in the first steps."""
        cross = encoder_hidden_states is not None
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(layer(states))
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
        )
        weights = attn.get_attention_scores(query, key, attention_mask)
        share = self.cross_replace if cross else self.self_replace
        if self.is_within(share) and (cross or weights.shape[-1] <= LARGEST):
            weights = self.injected(weights, cross)
        out = attn.batch_to_head_dim(torch.bmm(weights, value))
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor

    def injected(self, weights: Tensor, cross: bool) -> Tensor:
        """Inject into attention (4 N heads, places, tokens): its last quarter is edited, the one before its source."""
        unguided, source, edited = weights.split([len(weights) // 2, len(weights) // 4, len(weights) // 4])
        if not cross:
            return torch.cat([unguided, source, source])
        mapping, own = (part.to(weights) for part in self.edit)
        return torch.cat([unguided, source, source @ mapping + edited * own])


def edit_frames(
    pipe: StableDiffusionPipeline, noise: Tensor, source: str, edited: str, attention: EditedAttention, **how: Any
) -> Tensor:
    """Make the edited frames from the inverted source frames `noise` (N, C, h, w): pixels (N, H, W, 3) in 0..1.

    `how`: further arguments of the pipeline, with a guidance above 1.
    """
    count, before = len(noise), pipe.unet.attn_processors
    pipe.unet.set_attn_processor(attention)
    try:
        both = pipe(
            prompt=[source] * count + [edited] * count,
            latents=torch.cat([noise, noise]),
            callback_on_step_end=attention.count,
            output_type="pt",
            **how,
        ).images
    finally:
        pipe.unet.set_attn_processor(before)
    return both[count:].permute(0, 2, 3, 1).float().cpu()
