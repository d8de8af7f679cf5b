"""Give a stage its pool of actors and its device, by its section cluster.STAGE."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..settings import ActorResources, TrainResources
from .connect import bars_for_people_only
from .placement import options

if TYPE_CHECKING:
    import ray.data


def actor_pool(stage: ActorResources, most: int | None = None, calls_per_actor: int = 1) -> dict[str, Any]:
    """Return the arguments of Ray Data's map_batches for a pool of actors on the stage's nodes.

    The pool starts with one actor and grows as resources come, so a smaller machine and a growing cluster work too. It
    ends at cluster.STAGE.actors, or at `most` where there is less to do. `calls_per_actor`: batches that one actor
    works on at the same time.
    """
    from ray.data import ActorPoolStrategy

    size = stage.actors if most is None else min(stage.actors, most)
    return {
        "compute": ActorPoolStrategy(min_size=1, max_size=size, max_concurrent_calls_per_actor=calls_per_actor),
        **options(stage),
    }


def map_rows(
    actor: type, rows: Sequence[Mapping[str, Any]], stage: ActorResources, batch_size: int = 1, **constructor: Any
) -> "ray.data.Dataset":
    """Send the rows through a pool of `actor`; a block of `batch_size` rows is one call, and is retried as one.

    `constructor`: keyword arguments of the actor's constructor, which runs once in each actor.
    """
    import ray.data

    bars_for_people_only()
    blocks = -(-len(rows) // batch_size)
    return ray.data.from_items(list(rows), override_num_blocks=blocks).map_batches(
        actor, batch_size=batch_size, fn_constructor_kwargs=constructor, **actor_pool(stage, blocks)
    )


def stage_device(stage: ActorResources | TrainResources) -> str:
    """Return "cuda" or "cpu" for a process of the stage; on a CPU, PyTorch gets a thread for each CPU of the stage."""
    import torch

    if stage.num_gpus > 0:
        return "cuda"
    torch.set_num_threads(max(1, round(stage.num_cpus)))
    return "cpu"
