"""Decide which nodes a stage may run on, by its section cluster.STAGE, and whether the cluster can ever hold it."""

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from ..settings import ActorResources, ClusterSettings, DecodeResources, TrainResources

StageResources = DecodeResources | ActorResources | TrainResources

AUTOSCALED = "ray.io/node-group"  # Ray's label of nodes that an autoscaler manages

log = logging.getLogger("cluster")


def needs(stage: StageResources) -> dict[str, float]:
    """Return what one task, actor or worker of the stage asks for: {"CPU": 4, "GPU": 1}, without zeros."""
    amounts = {"CPU": stage.num_cpus, "GPU": getattr(stage, "num_gpus", 0)}
    return {kind: amount for kind, amount in amounts.items() if amount}


def selector(stage: StageResources) -> dict[str, str] | None:
    """Return the stage's labels as Ray takes them; None for any node."""
    return dict(stage.labels) or None


def options(stage: StageResources) -> dict[str, Any]:
    """Return what a task or actor of the stage asks Ray for, as keyword arguments."""
    return {"num_cpus": stage.num_cpus, "num_gpus": getattr(stage, "num_gpus", 0), "label_selector": selector(stage)}


def fits(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether `wanted` selects a node with `labels`: VALUE, !VALUE, in(A, B) or !in(A, B) for each key."""
    return all(_matches(labels.get(key), value) for key, value in wanted.items())


def _matches(label: str | None, wanted: str) -> bool:
    values = wanted.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
    return (label in {value.strip() for value in values}) != wanted.startswith("!")


def places(node: Mapping[str, float], wanted: Mapping[str, float]) -> int | None:
    """How many times a node with these resources holds `wanted`; None: any number of times."""
    return min((int(node.get(kind, 0) // amount) for kind, amount in wanted.items()), default=None)


def check_room(name: str, stage: StageResources, count: int, key: str) -> None:
    """Check that the connected cluster can hold `count` workers of the stage called `name`.

    If it cannot, log what the job waits for if an autoscaler may add nodes, else raise UserError. `key` names the
    setting behind `count`.
    """
    import ray

    wanted, labels = needs(stage), stage.labels
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    chosen = [node["Resources"] for node in nodes if fits(node["Labels"], labels)]
    found = [places(node, wanted) for node in chosen]
    room = count if None in found else sum(each or 0 for each in found)
    if room >= count:
        return
    if any(AUTOSCALED in node["Labels"] for node in nodes):
        log.info("%s: room for %d of %d now; waiting for the autoscaler to add nodes (`ray status`)", name, room, count)
        return
    has = " and ".join(f"{sum(node.get(kind, 0) for node in chosen):g} {kind}" for kind in ("CPU", "GPU"))
    asked = " and ".join(f"cluster.{name}.num_{kind.lower()}s = {amount:g}" for kind, amount in wanted.items())
    where = f" with cluster.{name}.labels = {labels}" if labels else ""
    raise UserError(
        f"{key} with {asked} each do not fit the Ray cluster, which has {has} on {len(chosen)} node(s){where} and no "
        f"autoscaler: room for {room}; lower them, {'change the labels, ' if labels else ''}or add nodes"
    )


def check_room_online(cluster: ClusterSettings) -> None:
    """Check that the cluster has CPUs for every worker's decoding and encoding (data.online).

    With too few they would wait for ever: raises UserError, unless an autoscaler may add nodes.
    """
    import ray

    workers = cluster.train.workers_range[0]
    wanted = workers * (cluster.train.num_cpus + cluster.decode.num_cpus + cluster.encode.num_cpus)
    available = ray.cluster_resources().get("CPU", 0)
    if wanted > available and not any(AUTOSCALED in node["Labels"] for node in ray.nodes()):
        raise UserError(
            f"data.online = true: {workers} workers, each with a decoding task and an encoding actor, take {wanted:g} "
            f"CPUs, and the cluster has {available:g}; lower num_cpus of cluster.train, decode or encode, or add nodes"
        )
