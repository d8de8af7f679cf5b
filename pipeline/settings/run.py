"""Sections `run` and `cluster`: a run's name, place and seed, and what each stage asks Ray for."""

import os
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from .section import NumberOrRange, Section

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as Ray and Kubernetes write label names and values
Labels = dict[
    Annotated[str, Field(pattern=rf"^(?:[A-Za-z0-9.-]+/)?{LABEL}$")],
    Annotated[str, Field(pattern=rf"^!?(?:{LABEL}|in\({LABEL}(?:, ?{LABEL})*\))$")],
]


class RunSettings(Section):
    """Name, place and seed of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    storage: Annotated[str, Field(min_length=1)]
    seed: NonNegativeInt
    track: list[Literal["wandb", "mlflow"]]

    @property
    def folder(self) -> str:
        """STORAGE/NAME, with ~ expanded."""
        return f"{os.path.expanduser(self.storage).rstrip('/')}/{self.name}"


class DecodeResources(Section):
    """Resources of decoding tasks."""

    num_cpus: PositiveFloat
    max_tasks: PositiveInt | None
    labels: Labels


class ActorResources(Section):
    """Resources of a pool of actors: encoding, sampling, evaluation."""

    actors: PositiveInt
    num_cpus: NonNegativeFloat
    num_gpus: NonNegativeFloat
    labels: Labels


class TrainResources(Section):
    """Workers of a training, their resources, and when a failed training starts again."""

    workers: NumberOrRange
    num_cpus: NonNegativeFloat
    num_gpus: NonNegativeFloat
    labels: Labels
    start_timeout_s: PositiveInt
    hang_timeout_s: PositiveInt
    max_failures: Annotated[int, Field(ge=-1)]

    @property
    def workers_range(self) -> tuple[int, int]:
        """The smallest and the largest number of workers that train."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers


class ClusterSettings(Section):
    """Resources of every stage."""

    decode: DecodeResources
    encode: ActorResources
    train: TrainResources
    sample: ActorResources
