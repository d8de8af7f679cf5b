"""Pools of actors take their size and place from the stage's section, and rows go through them in batches."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.runtime.pools import actor_pool, map_rows, stage_device
from pipeline.settings import ActorResources

STAGE = ActorResources(actors=3, num_cpus=0.5, num_gpus=0, labels={})


class Doubler:
    """Multiply numbers, and tell how many came in one call."""

    def __init__(self, factor: int) -> None:
        self._factor = factor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        count = len(batch["number"])
        return {"number": np.asarray(batch["number"]) * self._factor, "at_once": np.full(count, count)}


def test_pool_grows_from_one_to_the_stages_actors() -> None:
    pool = actor_pool(STAGE, calls_per_actor=2)
    assert (pool["compute"].min_size, pool["compute"].max_size) == (1, 3)
    assert (pool["num_cpus"], pool["num_gpus"], pool["label_selector"]) == (0.5, 0, None)


def test_pool_is_no_larger_than_the_work() -> None:
    assert actor_pool(STAGE, most=2)["compute"].max_size == 2
    assert actor_pool(STAGE, most=9)["compute"].max_size == 3


def test_pool_stays_on_nodes_with_the_stages_labels() -> None:
    stage = STAGE.model_copy(update={"labels": {"stage": "encode"}})
    assert actor_pool(stage)["label_selector"] == {"stage": "encode"}


@pytest.mark.ray
def test_every_row_comes_back_once_in_batches(ray_cluster: None) -> None:
    found = map_rows(Doubler, [{"number": n} for n in range(5)], STAGE, batch_size=2, factor=2).take_all()
    assert sorted(row["number"] for row in found) == [0, 2, 4, 6, 8]
    assert sorted(row["at_once"] for row in found) == [1, 2, 2, 2, 2]


def test_device_follows_the_stage() -> None:
    threads = torch.get_num_threads()
    try:
        assert stage_device(STAGE.model_copy(update={"num_gpus": 1})) == "cuda"
        assert stage_device(STAGE.model_copy(update={"num_cpus": 2})) == "cpu" and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
