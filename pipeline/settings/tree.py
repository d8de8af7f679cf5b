"""The whole tree of settings, and the checks that look at several sections: each may be right, but not together."""

import yaml

from .bivdiff import BivdiffSettings
from .bridge import BridgeSettings
from .data import VAE_DOWNSAMPLING, CacheSettings, DataSettings, TextSettings, VaeSettings
from .model import VideoModelSettings
from .run import ClusterSettings, RunSettings
from .sample import AblateSettings, EvaluateSettings, SampleSettings
from .section import Problems, Section
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
        """Whether F_eta takes part in fine-tuning: the bridge starts at its output, or the network reads it."""
        return self.bridge.starts_at_neural_prior or self.model.prior_condition

    def to_yaml(self) -> str:
        """The resolved settings as YAML, in ray_config.yaml's order."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def contradictions(self) -> Problems:
        """Sizes, workers, the cache, the image, the text and SAF are what the other sections need."""
        data, cluster, condition, bridge = self.data, self.cluster.train, self.model.image_condition, self.bridge
        for key, model in (("model", self.model), ("prior.model", self.prior.model)):
            for side, pixels in (("height", data.height), ("width", data.width)):
                if (latent := pixels // VAE_DOWNSAMPLING) % model.patch_size:
                    size = f"the latent {side} {pixels} / {VAE_DOWNSAMPLING} = {latent}"
                    yield f"{key}.patch_size = {model.patch_size} does not divide {size}; change it, or data.{side}"
        most = cluster.workers_range[1]
        for key, train in (("train", self.train), ("prior.train", self.prior.train)):
            if train.global_batch < most:
                unfed = f"leaves some of cluster.train.workers = {most} without a clip"
                yield f"{key}.global_batch = {train.global_batch} {unfed}; use at least {most}, or fewer workers"
            if train.offload_optimizer and not cluster.num_gpus:
                idle = "with cluster.train.num_gpus = 0: the optimizer is in the CPU's memory already"
                yield f"{key}.offload_optimizer = true {idle}; set {key}.offload_optimizer false"
        for key, needs_cache, remedy in (
            ("cache.mix", bool(self.cache.mix), "set it []"),
            ("bridge.cached_prior", bridge.cached_prior, "set it false"),
            ("sample.while_training", self.sample.while_training is not None, "set it null"),
            ("text.path", self.text.path is not None, "cache the captions' embeddings with jobs/cache_latents.py"),
        ):
            if data.online and needs_cache:
                yield f"data.online = true trains without a cache, which {key} needs; {remedy}, or data.online false"
        if bridge.time_noise is not None and condition == "none":
            yield "bridge.time_noise disturbs the image, which model.image_condition = none does not show; set it null"
        if bridge.process == "bridge" and condition == "none":
            yield "model.image_condition = none leaves a bridge without its image; set frame"
        if bridge.saf and self.train.init is None:
            remedy = "set train.init (for example shipped:teacher), or bridge.saf false to train from scratch"
            yield f"bridge.saf = true aligns a bridge to a pre-trained model, but train.init is null; {remedy}"
        if self.model.backbone != "latte" and self.text.path is None:
            remedy = "set text.path to its encoder, or model.backbone latte"
            yield f"model.backbone = {self.model.backbone} is conditioned on text; {remedy}"
