"""Attention of an edited frame: replaced, refined, and the same where the prompts are."""

from typing import Any

import pytest
import torch

from pipeline.bivdiff.models import load_pipeline
from pipeline.bivdiff.prompt_to_prompt import EDITS, Edit, EditedAttention, edit_frames, refine, replace
from pipeline.sampling.items import InputRejected
from pipeline.settings.bivdiff import BivdiffSettings

STEPS = 3
HOW = {"num_inference_steps": STEPS, "guidance_scale": 7.5}


@pytest.fixture(scope="module")
def pipe(float32: BivdiffSettings) -> Any:
    return load_pipeline("image_model", "StableDiffusionPipeline", float32, "cpu")


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def tokens(pipe: Any, text: str) -> list[int]:
    return pipe.tokenizer(text, padding="max_length", truncation=True).input_ids


def test_replaced_word_takes_its_predecessors_attention(pipe: Any) -> None:
    """Words are letters here, but for dog and do: "a dog" has the tokens a, dog; "a cat" a, c, a, t."""
    mapping, own = replace(pipe.tokenizer, "a dog d", "a cat d")
    source, edited = tokens(pipe, "a dog d"), tokens(pipe, "a cat d")
    assert source[4] == edited[6] == pipe.tokenizer.eos_token_id
    weights = torch.arange(1.0, len(source) + 1)
    seen = weights @ mapping
    assert seen[:2].tolist() == [1, 2], "beginning and the first word"
    assert seen[2:5].tolist() == pytest.approx([1, 1, 1]), "attention 3 of one token, shared by three"
    assert seen[5:].tolist() == [4, 5, 6, 7, 8, 9, 10], "the last word, the end, padding"
    assert not own.any()
    shorter, own = replace(pipe.tokenizer, "a cat d", "a dog d")
    assert (weights @ shorter)[2] == 3 + 4 + 5
    assert own[-2:].tolist() == [1, 1], "padding that the source has not"


def test_replacing_takes_prompts_of_as_many_words(pipe: Any) -> None:
    with pytest.raises(InputRejected, match=r"source_prompt has 2 words, prompt 3; .* needs as many"):
        replace(pipe.tokenizer, "a dog", "a red dog")


def test_refined_prompt_takes_the_attention_of_what_both_say(pipe: Any) -> None:
    mapping, own = refine(pipe.tokenizer, "a dog", "a d dog")
    source, edited = tokens(pipe, "a dog"), tokens(pipe, "a d dog")
    for column, token in enumerate(edited):
        rows = mapping[:, column].nonzero().flatten().tolist()
        assert len(rows) == 1 - int(own[column])
        assert all(source[row] == token for row in rows)
    # d is new; all else the source has, its padding being one longer
    assert own.tolist() == [0, 0, 1, *[0] * (len(edited) - 3)]


@pytest.mark.parametrize("kind", list(EDITS))
def test_edit_by_identical_prompts_is_the_identity(pipe: Any, noise: torch.Tensor, kind: str) -> None:
    plain = pipe(prompt=["a dog"] * 2, latents=noise, output_type="pt", **HOW).images.permute(0, 2, 3, 1)
    attention = EditedAttention(EDITS[kind](pipe.tokenizer, "a dog", "a dog"), 1.0, 1.0, STEPS)
    made = edit_frames(pipe, noise, "a dog", "a dog", attention, **HOW)
    assert torch.allclose(made, plain, atol=1e-5)


def test_edited_frame_has_its_sources_attention_and_nothing_else_changes() -> None:
    """Two heads, two frames, five places, four tokens: unguided twice, source, edited."""
    weights = torch.rand(4 * 2 * 2, 5, 4, generator=torch.Generator().manual_seed(0))
    edit = Edit(torch.eye(4).roll(1, 1), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    attention = EditedAttention(edit, 1.0, 1.0, steps=10)
    _, _, source, edited = weights.chunk(4)
    for cross, wanted in ((False, source), (True, source.roll(1, 2) + edited * edit.own)):
        found = attention.injected(weights, cross)
        assert torch.equal(found[:12], weights[:12])
        assert torch.allclose(found[12:], wanted)


def test_attention_is_injected_in_the_first_steps_only() -> None:
    attention = EditedAttention(Edit(torch.eye(4), torch.zeros(4)), 1.0, 1.0, steps=10)
    seen = []
    for step in range(10):
        seen.append((attention.is_within(0.4), attention.is_within(0.0), attention.is_within(1.0)))
        attention.count(None, step, None, {})
    assert [before for before, _, _ in seen] == [True] * 4 + [False] * 6
    assert not any(never for _, never, _ in seen) and all(always for _, _, always in seen)


def test_more_of_an_edit_changes_more_and_the_network_stays_as_it_was(pipe: Any, noise: torch.Tensor) -> None:
    before = {name: type(processor) for name, processor in pipe.unet.attn_processors.items()}
    edit = replace(pipe.tokenizer, "a dog", "a cat")
    none, some, all_steps = (
        edit_frames(pipe, noise, "a dog", "a cat", EditedAttention(edit, share, share, STEPS), **HOW)
        for share in (0.0, 0.4, 1.0)
    )
    plain = pipe(prompt=["a cat"] * 2, latents=noise, output_type="pt", **HOW).images.permute(0, 2, 3, 1)
    assert torch.allclose(none, plain, atol=1e-5)
    assert not torch.equal(some, none) and not torch.equal(some, all_steps)
    assert {name: type(processor) for name, processor in pipe.unet.attn_processors.items()} == before
