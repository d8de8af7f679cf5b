"""TrainSpec: all that a training reads. The driver resolves it once; workers get it in place of the settings."""

from dataclasses import dataclass
from typing import Literal

from ..data.cache.info import CacheSpec
from ..settings import (
    BridgeSettings,
    CacheSettings,
    DataSettings,
    ModelSettings,
    Settings,
    TrainResources,
    TrainSettings,
    VaeSettings,
)

Job = Literal["finetune", "prior"]


@dataclass(frozen=True)
class TrainSpec:
    """One training: its sections of the settings, and the cache that it reads."""

    job: Job
    name: str  # run.name
    folder: str  # STORAGE/NAME/JOB
    seed: int
    model: ModelSettings
    train: TrainSettings
    bridge: BridgeSettings
    prior_export: str | None  # the neural prior's export, where the loss takes it
    cache: CacheSpec
    cache_path: str
    caches: CacheSettings  # cache.mix, and the copy on each node
    data: DataSettings
    vae: VaeSettings
    resources: TrainResources
    track: tuple[str, ...]

    @property
    def key(self) -> str:
        """The section that `train` comes from, for messages."""
        return "train" if self.job == "finetune" else "prior.train"

    @property
    def export(self) -> str:
        """The folder of the finished model."""
        return f"{self.folder}/export"


def train_spec(job: Job, settings: Settings, cache: CacheSpec) -> TrainSpec:
    """The spec of a job on a cache."""
    model, train = sections(job, settings)
    run = settings.run
    return TrainSpec(
        job=job,
        name=run.name,
        folder=f"{run.folder}/{job}",
        seed=run.seed,
        model=model,
        train=train,
        bridge=settings.bridge,
        prior_export=settings.prior_export if job == "finetune" and settings.uses_neural_prior else None,
        cache=cache,
        cache_path=settings.cache_path,
        caches=settings.cache,
        data=settings.data,
        vae=settings.vae,
        resources=settings.cluster.train,
        track=tuple(run.track),
    )


def sections(job: Job, settings: Settings) -> tuple[ModelSettings, TrainSettings]:
    """The sections `model` and `train`, or prior.model and prior.train."""
    return (settings.model, settings.train) if job == "finetune" else (settings.prior.model, settings.prior.train)
