"""The whole tree of settings."""

from typing import Self

from pydantic import model_validator

from .ablate import AblateSettings
from .bivdiff import BivdiffSettings
from .bridge import BridgeSettings
from .cluster import ClusterSettings
from .cross_checks import check_combinations, without_effect_across
from .data import CacheSettings, DataSettings
from .encoders import TextSettings, VaeSettings
from .evaluate import EvaluateSettings
from .model import VideoModelSettings
from .run import RunSettings
from .sample import SampleSettings
from .section import Section, subsections
from .train import PriorSettings, TrainSettings


class Settings(Section):
    """Every setting of the pipeline; the comments beside the keys in ray_config.yaml say what each means."""

    run: RunSettings
    data: DataSettings
    cache: CacheSettings
    vae: VaeSettings
    text: TextSettings
    model: VideoModelSettings
    bridge: BridgeSettings
    train: TrainSettings
    prior: PriorSettings
    sample: SampleSettings
    evaluate: EvaluateSettings
    ablate: AblateSettings
    bivdiff: BivdiffSettings
    cluster: ClusterSettings

    @property
    def cache_path(self) -> str:
        """Folder or URI of the latent cache."""
        return self.cache.path or f"{self.run.folder}/cache"

    @property
    def prior_export(self) -> str:
        """Export of the neural prior F_eta."""
        return self.bridge.prior_path or f"{self.run.folder}/prior/export"

    @property
    def model_export(self) -> str:
        """Export of the video network that is sampled."""
        return self.sample.model_path or f"{self.run.folder}/finetune/export"

    @property
    def uses_neural_prior(self) -> bool:
        """Whether F_eta takes part in fine-tuning: the bridge starts at its output, or the network is shown it."""
        return self.bridge.starts_at_neural_prior or self.model.prior_condition

    def without_effect(self, key: str = "") -> dict[str, str]:
        """Dotted names of settings that do nothing beside the others, each with the cause and the remedy."""
        found = without_effect_across(self)
        for name, section in subsections(self):
            found |= {f"{name}.{setting}": cause for setting, cause in section.without_effect(name).items()}
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_combinations(self)
        return self
