"""Which nodes a stage may run on, by cluster.STAGE of the settings, and whether the cluster can ever hold it."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import UserError
from ..settings import Settings

Stage = Literal["decode", "encode", "train", "sample"]

AUTOSCALED = "ray.io/node-group"  # Ray's own label of nodes whose kind an autoscaler knows

log = logging.getLogger("cluster")


def needs(settings: Settings, stage: Stage) -> dict[str, float]:
    """What one task, actor or worker of the stage asks for: {"CPU": 4, "GPU": 1}, without zeros."""
    resources = getattr(settings.cluster, stage)
    return {
        kind: amount
        for kind, amount in (("CPU", resources.num_cpus), ("GPU", getattr(resources, "num_gpus", 0)))
        if amount
    }


def selector(settings: Settings, stage: Stage) -> dict[str, str] | None:
    """cluster.STAGE.labels as Ray takes them; None for any node."""
    return dict(getattr(settings.cluster, stage).labels) or None


def fits(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node with `labels` is one that `wanted` selects: VALUE, !VALUE, in(A, B) or !in(A, B) for each key."""
    return all(_matches(labels.get(key), value) for key, value in wanted.items())


def _matches(label: str | None, wanted: str) -> bool:
    positive = wanted.removeprefix("!")
    inside = positive.removeprefix("in(").removesuffix(")") if positive.startswith("in(") else positive
    return (label in {value.strip() for value in inside.split(",")}) != wanted.startswith("!")


def places(node: Mapping[str, float], wanted: Mapping[str, float]) -> int | None:
    """How many of `wanted` a node with these resources holds; None: any number."""
    return min((int(node.get(kind, 0) // amount) for kind, amount in wanted.items()), default=None)


def check_room(settings: Settings, stage: Stage, count: int, key: str) -> None:
    """Raise UserError if the connected cluster can never hold `count` workers of the stage, and nothing adds nodes to it.

    Where an autoscaler may add nodes, say what is being waited for. `key` names the setting behind `count`.
    """
    import ray

    wanted, labels = needs(settings, stage), selector(settings, stage) or {}
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    chosen = [node["Resources"] for node in nodes if fits(node["Labels"], labels)]
    found = [places(node, wanted) for node in chosen]
    room = count if None in found else sum(each or 0 for each in found)
    if room >= count:
        return
    if any(AUTOSCALED in node["Labels"] for node in nodes):
        log.info(
            "%s: room for %d of %d now; waiting for the autoscaler to add nodes (`ray status`)", stage, room, count
        )
        return
    has = " and ".join(f"{sum(node.get(kind, 0) for node in chosen):g} {kind}" for kind in ("CPU", "GPU"))
    asked = " and ".join(f"cluster.{stage}.num_{kind.lower()}s = {amount:g}" for kind, amount in wanted.items())
    where = f" with cluster.{stage}.labels = {labels}" if labels else ""
    raise UserError(
        f"{key} with {asked} each do not fit the Ray cluster, which has {has} on {len(chosen)} node(s){where} and no "
        f"autoscaler: room for {room}; lower them, {'change the labels, ' if labels else ''}or add nodes"
    )


def check_room_online(settings: Settings) -> None:
    """Raise UserError if the cluster has no CPUs for every worker's decoding and encoding (data.online), which would wait
    for ever, and no autoscaler adds nodes.
    """
    import ray

    cluster, workers = settings.cluster, settings.cluster.train.workers_range[0]
    wanted = workers * (cluster.train.num_cpus + cluster.decode.num_cpus + cluster.encode.num_cpus)
    there = ray.cluster_resources().get("CPU", 0)
    if wanted > there and not any(AUTOSCALED in node["Labels"] for node in ray.nodes()):
        raise UserError(
            f"data.online = true: {workers} workers, each with a decoding task and an encoding actor, take {wanted:g} CPUs "
            f"(cluster.train, decode, encode), and the cluster has {there:g}; lower num_cpus or workers, or add nodes"
        )
