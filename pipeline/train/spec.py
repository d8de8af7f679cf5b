"""TrainSpec: all that a training reads. The driver resolves it once; workers get it in place of the settings."""

from dataclasses import dataclass
from typing import Literal

from ..data.cache.info import CacheSpec
from ..settings import (
    BridgeSettings,
    CacheSettings,
    DataSettings,
    ModelSettings,
    RunSettings,
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
    run: RunSettings
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

    @property
    def folder(self) -> str:
        """STORAGE/NAME/JOB."""
        return f"{self.run.folder}/{self.job}"

    @property
    def export(self) -> str:
        """The folder of the finished model."""
        return f"{self.folder}/export"

    @property
    def key(self) -> str:
        """The section that `train` comes from, for messages."""
        return "train" if self.job == "finetune" else "prior.train"


def train_spec(job: Job, settings: Settings, cache: CacheSpec) -> TrainSpec:
    """The spec of a job on a cache."""
    tree = settings if job == "finetune" else settings.prior
    prior = settings.prior_export if job == "finetune" and settings.uses_neural_prior else None
    rest = (settings.cache_path, settings.cache, settings.data, settings.vae, settings.cluster.train)
    return TrainSpec(job, settings.run, tree.model, tree.train, settings.bridge, prior, cache, *rest)
