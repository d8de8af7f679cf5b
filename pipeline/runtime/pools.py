"""The one way in which a stage gets a pool of actors and a device, by its section cluster.STAGE."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..settings import ActorResources, TrainResources

if TYPE_CHECKING:
    import ray.data


def actor_pool(stage: ActorResources, most: int | None = None, calls_per_actor: int = 1) -> dict[str, Any]:
    """Arguments of Ray Data's map_batches for a pool of actors on the stage's nodes.

    The pool starts with one actor and grows, as resources come, to cluster.STAGE.actors, or to `most` where there is
    less to do: a smaller machine or a growing cluster works too. `calls_per_actor`: batches that an actor works on at
    the same time.
    """
    from ray.data import ActorPoolStrategy

    size = stage.actors if most is None else min(stage.actors, most)
    return {
        "compute": ActorPoolStrategy(min_size=1, max_size=size, max_concurrent_calls_per_actor=calls_per_actor),
        "num_cpus": stage.num_cpus,
        "num_gpus": stage.num_gpus,
        "label_selector": dict(stage.labels) or None,
    }


def map_rows(
    actor: type, rows: Sequence[Mapping[str, Any]], stage: ActorResources, batch_size: int = 1, **constructor: Any
) -> "ray.data.Dataset":
    """The rows through a pool of `actor`, `batch_size` at a time: a block is one call, the unit of work and of retries.

    `constructor`: keyword arguments of the actor's constructor, which runs once in each actor.
    """
    import ray.data

    blocks = -(-len(rows) // batch_size)
    return ray.data.from_items(list(rows), override_num_blocks=blocks).map_batches(
        actor, batch_size=batch_size, fn_constructor_kwargs=constructor, **actor_pool(stage, blocks)
    )


def stage_device(stage: ActorResources | TrainResources) -> str:
    """ "cuda" or "cpu", for a process of the stage; on a CPU, PyTorch gets as many threads as the stage has CPUs."""
    import torch

    if stage.num_gpus > 0:
        return "cuda"
    torch.set_num_threads(max(1, round(stage.num_cpus)))
    return "cpu"
