"""Prompt-to-Prompt (Hertz et al. 2022): a frame edited by showing its network the attention that its source has.

The batch of a pipeline is N sources and N edited frames, twice with guidance: unconditional, then conditional. In the
first steps, the edited ones attend to words and to themselves as their sources do; what differs is the words themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..sampling.items import InputRejected

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention
    from transformers import CLIPTokenizer

LARGEST = (
    32**2
)  # places of the largest layers whose self-attention is injected, as in the authors' code: half of 64 x 64 latents


class Edit(NamedTuple):
    """Attention of an edited token: source @ mapping + own * itself, over tokens of the prompts, padded."""

    mapping: Tensor  # (L, L): from source tokens (rows) to edited ones
    own: Tensor  # (L,): 1 for tokens that the source has not


def replace(tokenizer: CLIPTokenizer, source: str, edited: str) -> Edit:
    """Word for word: the attention to a word of the source goes to the word in its place, shared if that has other tokens.

    Raises InputRejected for prompts of different numbers of words.
    """
    words = source.split(), edited.split()
    if len(words[0]) != len(words[1]):
        raise InputRejected(
            f"source_prompt has {len(words[0])} words and prompt {len(words[1])}; bivdiff.edit replace takes as many, refine others"
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
    return Edit(mapping, (mapping.sum(0) == 0).float())


def refine(tokenizer: CLIPTokenizer, source: str, edited: str) -> Edit:
    """Words added: tokens that both prompts have, in order, take the source's attention, new ones keep their own."""
    length = tokenizer.model_max_length
    tokens = [tokenizer(text, padding="max_length", truncation=True).input_ids for text in (source, edited)]
    mapping = torch.zeros(length, length)
    for block in difflib.SequenceMatcher(a=tokens[0], b=tokens[1], autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            mapping[block.a + offset, block.b + offset] = 1
    return Edit(mapping, (mapping.sum(0) == 0).float())


EDITS = {"replace": replace, "refine": refine}


class StepCounter:
    """How far sampling is, 0 to 1, for the layers of a network."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0

    def __call__(self, pipe: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A pipeline's callback_on_step_end."""
        self.done = step + 1
        return tensors

    def before(self, share: float) -> bool:
        return self.done < share * self.steps


class EditedAttention:
    """A processor of a diffusers attention layer in a transformer block."""

    def __init__(self, edit: Edit, progress: StepCounter, cross_replace: float, self_replace: float) -> None:
        self.edit, self.progress = edit, progress
        self.cross_replace, self.self_replace = cross_replace, self_replace

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: object,
    ) -> Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(seen))
        value = attn.head_to_batch_dim(attn.to_v(seen))
        weights = attn.get_attention_scores(query, key, attention_mask)
        share = self.self_replace if encoder_hidden_states is None else self.cross_replace
        if self.progress.before(share) and (encoder_hidden_states is not None or weights.shape[-1] <= LARGEST):
            weights = self.injected(weights, encoder_hidden_states is not None)
        out = attn.batch_to_head_dim(torch.bmm(weights, value))
        out = attn.to_out[1](attn.to_out[0](out))
        return out / attn.rescale_output_factor

    def injected(self, weights: Tensor, cross: bool) -> Tensor:
        """(4 N heads, places, tokens), of which the last quarter is the edited, the one before it its source."""
        unguided, source, edited = weights.split([len(weights) // 2, len(weights) // 4, len(weights) // 4])
        if not cross:
            return torch.cat([unguided, source, source])
        mapping, own = (part.to(weights) for part in self.edit)
        return torch.cat([unguided, source, source @ mapping + edited * own])


@contextmanager
def edited_attention(unet: UNet2DConditionModel, processor: EditedAttention) -> Iterator[None]:
    """The network with the processor in all of its attention layers, for the while."""
    before = unet.attn_processors
    unet.set_attn_processor(processor)
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def edit_frames(
    pipe: StableDiffusionPipeline,
    noise: Tensor,
    source: str,
    edited: str,
    edit: Edit,
    cross_replace: float,
    self_replace: float,
    **how: Any,
) -> Tensor:
    """Pixels (N, H, W, 3) in 0..1 of the edited frames; `noise` (N, C, h, w) is what the source frames are inverted to.

    `how`: further arguments of the pipeline, guidance among them, which must be above 1.
    """
    count = len(noise)
    progress = StepCounter(how["num_inference_steps"])
    with edited_attention(pipe.unet, EditedAttention(edit, progress, cross_replace, self_replace)):
        both = pipe(
            prompt=[source] * count + [edited] * count,
            latents=torch.cat([noise, noise]),
            callback_on_step_end=progress,
            output_type="pt",
            **how,
        ).images
    return both[count:].permute(0, 2, 3, 1).float().cpu()
