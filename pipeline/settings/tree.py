"""The whole tree of settings."""

from typing import Self

from pydantic import model_validator

from .ablate import AblateSettings
from .bivdiff import BivdiffSettings
from .bridge import BridgeSettings
from .cluster import ClusterSettings
from .cross_checks import check_online, check_patches, check_process
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
        found = {
            f"{name}.{setting}": cause
            for name, section in subsections(self)
            for setting, cause in section.without_effect(name).items()
        }
        bridge, model = self.bridge, self.model
        if not self.uses_neural_prior and bridge.prior == "neural":
            found["bridge.prior"] = (
                "with bridge.process = diffusion and model.prior_condition = false; set it replicated, or "
                "model.prior_condition true"
            )
        if not self.uses_neural_prior and bridge.cached_prior:
            found["bridge.cached_prior"] = (
                f"with bridge.process = {bridge.process} and bridge.prior = {bridge.prior}; set it false, or "
                "bridge.prior neural, or model.prior_condition true"
            )
        samples_own_model = self.sample.model_path is None and self.bivdiff.items is None
        if samples_own_model and not model.takes_stride:
            found["sample.stride"] = (
                f"with model.backbone = {model.backbone}, which is not told the stride; leave it out"
            )
        return found

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patches("model", self.model, self.data)
        check_patches("prior.model", self.prior.model, self.data)
        workers = self.cluster.train
        self.train.check("train", workers.workers_range[1], workers.num_gpus)
        self.prior.train.check("prior.train", workers.workers_range[1], workers.num_gpus)
        if self.data.online:
            check_online(self.cache, self.bridge, self.sample, self.text)
        check_process(self.bridge, self.model, self.train, self.text)
        return self
