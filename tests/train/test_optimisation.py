"""The rate of every step, and which parameters decay."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_cache import tiny_settings

from pipeline.models.build import build_image_to_video
from pipeline.settings import TrainSettings
from pipeline.train.optimisation import learning_rate, muon, orthogonalise, parameter_groups


def train_settings(**changes: object) -> TrainSettings:
    return tiny_settings(Path("/tmp")).train.model_copy(
        update={"steps": 100, "warmup_steps": 10, "learning_rate": 1.0, **changes}
    )


def test_warm_up_reaches_the_rate_and_cosine_ends_at_zero() -> None:
    train = train_settings(lr_schedule="cosine")
    rates = [learning_rate(step, train) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_constant_stays() -> None:
    train = train_settings(lr_schedule="constant", warmup_steps=0)
    assert {learning_rate(step, train) for step in range(100)} == {1.0}


def test_only_matrices_decay_and_nothing_is_left_out() -> None:
    model = build_image_to_video(tiny_settings(Path("/tmp")).model, [4, 4, 4, 4], 2)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    backbone: Any = model.backbone
    table = backbone.y_embedder.get_parameter("embedding_table.weight")
    assert any(p is table for p in others["params"]) and all(p is not table for p in decayed["params"])
    every = [*decayed["params"], *others["params"]]
    assert sorted(map(id, every)) == sorted(map(id, model.parameters()))


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.0)] == [1]


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    for shape in ((16, 144), (64, 27)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalise(matrix)) / max(1.0, shape[0] / shape[1]) ** 0.5
        assert values.min() > 0.4
        assert values.max() < 1.3


def test_muon_takes_the_blocks_matrices_and_is_adamw_on_the_rest() -> None:
    model = build_image_to_video(tiny_settings(Path("/tmp")).model, [4, 4, 4, 4], 2)
    train = train_settings(learning_rate=0.01, weight_decay=0.1)
    optimizer = muon(model, train)
    taken = {id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    backbone: Any = model.backbone
    assert taken == {id(p) for p in backbone.blocks.parameters() if p.ndim > 1}
    rest = [p for p in model.parameters() if id(p) not in taken]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(taken) + len(rest)
    twins = [p.detach().clone().requires_grad_() for p in rest]
    decay = [
        {"params": [t], "weight_decay": 0.1 * (p.ndim > 1 and "Embedding" not in name)}
        for p, t, name in zip(rest, twins, owners(model, rest), strict=True)
    ]
    adamw = torch.optim.AdamW(decay, lr=0.01, betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter, twin in zip(rest, twins, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=random)
            twin.grad = parameter.grad.clone()
        optimizer.step()
        adamw.step()
    for parameter, twin in zip(rest, twins, strict=True):
        torch.testing.assert_close(parameter, twin)


def owners(model: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> list[str]:
    """The kind of module that each parameter belongs to."""
    kinds = {id(p): type(module).__name__ for module in model.modules() for p in module.parameters(recurse=False)}
    return [kinds[id(p)] for p in parameters]
