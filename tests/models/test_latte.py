"""Latte's initialisation, contract and randomness. Its numbers are in tests/golden."""

from typing import Any

import pytest
import torch
from helpers.tiny_networks import LATTE, randomise
from torch import Tensor

from pipeline.models.conditioning import dropout_masks, guided
from pipeline.models.latte import LATTE_SIZES, Latte

SMALL = {**LATTE, "depth": 4}
X = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.tensor([1.5, 900.0])
Y = torch.tensor([0, 5])


def stirred(latte: Latte) -> Latte:
    return randomise(latte, seed=1, std=0.2)


def test_untrained_model_predicts_zero() -> None:
    assert not Latte(**SMALL)(X, T, Y).any()


def test_blocks_are_the_identity_at_first() -> None:
    x = torch.randn(1, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    for block in Latte(**SMALL).blocks:
        assert torch.equal(block(x, torch.ones(1, 16)), x)


def test_embeddings_are_saved_but_not_trained() -> None:
    latte = Latte(**SMALL)
    trained = {name for name, _ in latte.named_parameters()}
    assert not trained & {"pos_embed", "temp_embed"}
    assert set(latte.state_dict()) - trained == {"pos_embed", "temp_embed"}


def test_frames_see_each_other() -> None:
    latte = stirred(Latte(**SMALL))
    other = X.clone()
    other[:, 2] += 1
    assert not torch.allclose(latte(X, T, Y)[:, 0], latte(other, T, Y)[:, 0])


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    latte = stirred(Latte(**SMALL))
    torch.testing.assert_close(latte(X, T, Y)[:1], latte(X[:1], T[:1], Y[:1]))


def test_learned_sigma_doubles_the_channels() -> None:
    assert Latte(**SMALL, learn_sigma=True)(X, T, Y).shape == (2, 3, 8, 4, 4)


def test_activation_checkpointing_keeps_the_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        latte = stirred(Latte(**SMALL, activation_checkpointing=checkpointing))
        latte(X, T, Y).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in latte.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_weights_of_another_dtype_take_the_latent() -> None:
    assert Latte(**SMALL).bfloat16()(X, T, Y).dtype == torch.bfloat16


def test_autocast_to_bfloat16_stays_within_three_percent_of_float32() -> None:
    latte = stirred(Latte(**SMALL))
    exact = latte(X, T, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = latte(X, T, Y).float()
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()  # measured: 0.97 %


def test_global_generator_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    latte = Latte(**SMALL)
    latte(X, T, Y)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_decides_the_weights() -> None:
    first, again, other = (Latte(**SMALL, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x_embedder.proj.weight"], other["x_embedder.proj.weight"])


def test_published_sizes_have_their_dimensions() -> None:
    assert {name: tuple(size) for name, size in LATTE_SIZES.items()} == {
        "S": (12, 384, 6),
        "B": (12, 768, 12),
        "L": (24, 1024, 16),
        "XL": (28, 1152, 16),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch_size": 3}, "patches of 3"), ({"depth": 3}, "must be even"), ({"num_heads": 3}, "multiple")],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latte(**{**SMALL, **change})


@pytest.mark.parametrize("x", [X[:, :2], X[:, :, :3]])
def test_input_of_another_model_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="built for 3 frames of 4 channels"):
        Latte(**SMALL)(x, T, Y)


def test_missing_timestep_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        Latte(**SMALL)(X, None, Y)


def test_dropped_conditions_follow_their_probability() -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    label, image = dropout_masks(u, 0.1)
    for one in (label, image):
        assert 0.09 < one.double().mean() < 0.11
    assert 0.04 < (label & image).double().mean() < 0.06
    assert not any(one.any() for one in dropout_masks(u, 0.0))
    assert dropout_masks(u, 1.0)[0].all()


def test_guidance_follows_its_formula_in_one_call() -> None:
    latte = stirred(Latte(**SMALL))
    calls: list[int] = []

    def counted(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append(len(z))
        return latte(z, t, y)

    y = torch.tensor([0, 1])
    found = guided(counted, y, null=5, scale=4.0)(X, T)
    conditional, null = latte(X, T, y), latte(X, T, torch.tensor([5, 5]))
    torch.testing.assert_close(found, null + 4 * (conditional - null))
    torch.testing.assert_close(guided(counted, y, null=5, scale=1.0)(X, T), conditional)
    assert calls == [4, 2]


def test_compiled_latte_is_one_graph() -> None:
    latte = stirred(Latte(**SMALL))
    compiled = torch.compile(latte, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, T, Y), latte(X, T, Y))


@pytest.mark.parametrize(("size", "patch"), [("B", 4), ("L", 8), ("S", 8), ("XL", 4)])
def test_published_patches_give_their_tokens(size: str, patch: int) -> None:
    with torch.device("meta"):
        shape: dict[str, Any] = dict(input_size=32, in_channels=4, num_frames=17, num_classes=101)
        latte = Latte(**shape, patch_size=patch, **LATTE_SIZES[size]._asdict())
        out = latte(torch.empty(1, 17, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.int64))
    width = LATTE_SIZES[size].hidden_size
    assert out.shape == (1, 17, 4, 32, 32)
    assert latte.pos_embed.shape == (1, (32 // patch) ** 2, width)
    assert latte.state_dict()["x_embedder.proj.weight"].shape == (width, 4, patch, patch)
    assert latte.state_dict()["final_layer.linear.weight"].shape == (patch * patch * 4, width)
