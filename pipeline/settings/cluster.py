"""Section `cluster`: what each stage asks Ray for."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from .section import NonNegative, Section

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as Ray and Kubernetes write label names and values
Labels = dict[
    Annotated[str, Field(pattern=rf"^(?:[A-Za-z0-9.-]+/)?{LABEL}$")],
    Annotated[str, Field(pattern=rf"^!?(?:{LABEL}|in\({LABEL}(?:, ?{LABEL})*\))$")],
]


class DecodeResources(Section):
    """Resources of decoding tasks."""

    num_cpus: PositiveFloat
    max_tasks: PositiveInt | None
    labels: Labels


class ActorResources(Section):
    """Resources of a pool of actors: encoding, sampling, evaluation."""

    actors: PositiveInt
    num_cpus: NonNegative
    num_gpus: NonNegative
    labels: Labels


class TrainResources(Section):
    """Workers of a training, their resources, and how failures are met."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt]
    num_cpus: NonNegative
    num_gpus: NonNegative
    labels: Labels
    start_timeout_s: PositiveInt
    hang_timeout_s: PositiveInt
    max_failures: Annotated[int, Field(ge=-1)]

    @property
    def workers_range(self) -> tuple[int, int]:
        """The least and the most workers that train."""
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.workers_range[0] > self.workers_range[1]:
            raise ValueError(f"cluster.train.workers = {list(self.workers_range)}: give the smaller number first")
        return self


class ClusterSettings(Section):
    """Resources of every stage."""

    decode: DecodeResources
    encode: ActorResources
    train: TrainResources
    sample: ActorResources
