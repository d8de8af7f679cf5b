"""The rate of every step, and which parameters decay."""

from itertools import pairwise

import pytest
import torch
from tiny_cache import tiny_settings

from pipeline.models.build import build_image_to_video
from pipeline.settings import TrainSettings
from pipeline.train.optimisation import learning_rate, parameter_groups


def train_settings(**changes: object) -> TrainSettings:
    return tiny_settings("/tmp").train.model_copy(
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
    model = build_image_to_video(tiny_settings("/tmp").model, [4, 4, 4, 4], 2)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    table = model.backbone.y_embedder.embedding_table.weight
    assert any(p is table for p in others["params"]) and all(p is not table for p in decayed["params"])
    every = [*decayed["params"], *others["params"]]
    assert sorted(map(id, every)) == sorted(map(id, model.parameters()))


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.0)] == [1]
