"""Typed settings: names and types; settings_checks.py says which combinations are refused, and why.

Everything that a user can get wrong raises `UserError`: one line that names the key, the value, what was expected and
the remedy. There are no defaults here: ray_config.yaml has them, and pipeline/config.py reads them from there and from the
command line.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from .settings_base import Fraction, NonNegative, Section
from .settings_bivdiff import BivdiffSettings
from .settings_checks import (
    VAE_DOWNSAMPLING,
    check_combinations,
    check_conditions,
    check_dimensions,
    check_held_out,
    check_sampler,
    check_schedules,
    check_widths,
)

LATENT_CHANNELS = 4


Beta = Annotated[float, Field(ge=0, lt=1)]


LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as Ray and Kubernetes write label names and values


Labels = dict[
    Annotated[str, Field(pattern=rf"^(?:[A-Za-z0-9.-]+/)?{LABEL}$")],
    Annotated[str, Field(pattern=rf"^!?(?:{LABEL}|in\({LABEL}(?:, ?{LABEL})*\))$")],
]


class RunSettings(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    storage: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    track: list[Literal["wandb", "mlflow"]]

    @property
    def folder(self) -> str:
        """STORAGE/NAME, with ~ expanded."""
        storage = self.storage
        if storage.startswith("~"):
            storage = str(Path(storage).expanduser())
        return f"{storage.rstrip('/')}/{self.name}"


class DataSettings(Section):
    source: Literal["ucf101", "webvid", "msrvtt", "folder", "webdataset", "manifest"]
    path: str
    online: bool
    annotations: str | None
    split_list: Literal[1, 2, 3]
    holdout_fraction: Fraction
    max_videos: PositiveInt | None
    frames: PositiveInt
    window: Literal["uniform", "ucf101_authors"]
    stride: int | tuple[int, int]
    clips_per_video: PositiveInt
    clip_starts: Literal["even", "random"]
    clip_seed: Annotated[int, Field(ge=0)]
    flip: bool
    short_video: Literal["reject", "reduce_stride"]
    height: PositiveInt
    width: PositiveInt
    decoder: Literal["auto", "decord", "pyav", "torchcodec"]
    decode_timeout_s: PositiveFloat
    decode_memory_mb: Annotated[int, Field(ge=64)]
    max_pixels: PositiveInt

    @field_validator("stride", mode="before")
    @classmethod
    def _stride(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value, value]
        if not all(type(number) is int and number >= 1 for number in numbers) or numbers[0] > numbers[1]:
            raise ValueError(f"data.stride = {value!r}: expected a whole number from 1, or a range such as [1, 6]")
        return value

    @model_validator(mode="after")
    def _whole_latents(self) -> Self:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % VAE_DOWNSAMPLING:
                down = value - value % VAE_DOWNSAMPLING
                raise ValueError(
                    f"data.{name} = {value} is not a multiple of {VAE_DOWNSAMPLING}, the VAE's downsampling; "
                    f"use {max(down, VAE_DOWNSAMPLING)} or {down + VAE_DOWNSAMPLING}"
                )
        return self


class MixedCache(Section):
    path: Annotated[str, Field(min_length=1)]
    weight: PositiveFloat


class CacheSettings(Section):
    path: str | None
    mix: list[MixedCache]
    local_path: str | None
    local_gb: PositiveFloat
    shard_clips: PositiveInt
    max_reject_fraction: Fraction
    gc_after_hours: NonNegative
    retry_rejects: Literal["all"] | list[str]


class VaeSettings(Section):
    path: str
    dtype: Literal["float32", "bfloat16", "float16"]
    batch_frames: PositiveInt
    compile: bool


class TextSettings(Section):
    path: str | None
    tokenizer: str | None
    layer: Literal[-1, -2]
    max_length: PositiveInt
    dtype: Literal["float32", "bfloat16", "float16"]


class ModelSettings(Section):
    size: Literal["S", "B", "L", "XL"] | None
    hidden_size: PositiveInt | None
    depth: PositiveInt | None
    num_heads: PositiveInt | None
    patch_size: PositiveInt
    image_condition: Literal["frame", "channels", "none"]
    prior_condition: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_dimensions(self)
        return self


class UNet3DSettings(Section):
    model_channels: PositiveInt
    channel_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    attention_levels: tuple[Annotated[int, Field(ge=0)], ...]
    head_size: PositiveInt
    dropout: Beta
    image_encoder: str | None
    image_width: PositiveInt
    resampler_size: PositiveInt
    resampler_depth: PositiveInt
    resampler_heads: PositiveInt
    resampler_head_size: PositiveInt
    resampler_queries: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_widths(self)
        return self


class CogVideoXSettings(Section):
    num_layers: PositiveInt
    num_attention_heads: PositiveInt
    attention_head_dim: PositiveInt
    time_embed_dim: PositiveInt
    sample_width: PositiveInt
    sample_height: PositiveInt
    sample_frames: PositiveInt


class VideoModelSettings(ModelSettings):
    backbone: Literal["latte", "unet3d", "cogvideox"]
    unet3d: UNet3DSettings | None
    cogvideox: CogVideoXSettings | None

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        check_conditions(self)
        return self


class BridgeSettings(Section):
    process: Literal["bridge", "diffusion"]
    prior: Literal["replicated", "neural"]
    prior_path: str | None
    cached_prior: bool
    schedule: Literal["gmax", "vp"]
    beta0: PositiveFloat
    beta1: PositiveFloat
    target: Literal["noise", "v", "z0"]
    loss_weight: Literal["uniform", "noise"]
    saf: bool
    saf_edge: Literal["latte", "cogvideox"]
    pretrained_betas: Literal["linear", "scaled_linear"]
    pretrained_beta_start: Beta
    pretrained_beta_end: Beta
    pretrained_snr_shift: PositiveFloat
    pretrained_zero_terminal_snr: bool
    time_noise: PositiveFloat | None
    time_noise_power: PositiveFloat

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_schedules(self)
        return self


class LoraSettings(Section):
    rank: PositiveInt | None
    alpha: PositiveInt
    targets: list[str] | None


class TrainSettings(Section):
    init: str | None
    lora: LoraSettings
    trainable: list[str] | None
    steps: PositiveInt
    global_batch: PositiveInt
    micro_batch: PositiveInt
    optimizer: Literal["adamw", "muon"]
    learning_rate: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    lr_schedule: Literal["constant", "cosine"]
    weight_decay: NonNegative
    adam_betas: tuple[Beta, Beta]
    clip_norm: PositiveFloat | None
    precision: Literal["bfloat16", "float32"]
    zero_stage: Literal[0, 1, 2, 3]
    offload_optimizer: bool
    activation_checkpointing: bool
    compile: bool
    label_dropout: Fraction
    damaged_clips: Literal["stop", "skip"]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    keep_by: Literal["time", "validation_loss"]
    log_every: PositiveInt
    validate_every: PositiveInt
    validate_clips: PositiveInt


class PriorSettings(Section):
    model: ModelSettings
    train: TrainSettings


class SampleSettings(Section):
    model_path: str | None
    checkpoint: PositiveInt | None
    images: str | None
    count: PositiveInt | None
    sampler: Literal[
        "auto", "sde_first_order", "ode_first_order", "ode_second_order", "stochastic_heun", "dbim", "ddim"
    ]
    steps: Annotated[int, Field(ge=1, le=1000)]
    spacing: Literal["uniform", "trailing", "quadratic"]
    eta: Fraction
    order: Literal[1, 2, 3]
    start: Annotated[float, Field(gt=0, le=1)]
    analytic_init: str | None
    guidance: NonNegative
    image_guidance: NonNegative | None
    stride: PositiveInt
    batch: PositiveInt
    fps: PositiveInt
    while_training: PositiveInt | None
    while_training_count: PositiveInt
    gif: bool

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_sampler(self)
        return self


class EvaluateSettings(Section):
    samples: str | None
    detector: str | None
    i3d: str | None
    c3d: str | None
    videomae: str | None
    clip: str | None
    raft: str | None
    dreamsim: str | None
    expected: str | None
    batch: PositiveInt
    bootstrap: Annotated[int, Field(ge=2)]


class AblateSettings(Section):
    experiments: list[Literal["saf", "steps", "priors", "samplers", "leakage"]]
    videos: Annotated[int, Field(ge=8)]
    seeds: PositiveInt
    clips: Annotated[int, Field(ge=2)]
    sampler_clips: Annotated[int, Field(ge=2)]
    evaluations: list[Annotated[int, Field(ge=2)]]
    bootstrap: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        check_held_out(self)
        return self


class DecodeResources(Section):
    num_cpus: PositiveFloat
    max_tasks: PositiveInt | None
    labels: Labels


class ActorResources(Section):
    actors: PositiveInt
    num_cpus: NonNegative
    num_gpus: NonNegative
    labels: Labels


class TrainResources(Section):
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
    def _ordered(self) -> Self:
        if self.workers_range[0] > self.workers_range[1]:
            raise ValueError(f"cluster.train.workers = {list(self.workers_range)}: give the smaller number first")
        return self


class ClusterSettings(Section):
    decode: DecodeResources
    encode: ActorResources
    train: TrainResources
    sample: ActorResources


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
        return self.cache.path or f"{self.run.folder}/cache"

    @property
    def prior_export(self) -> str:
        return self.bridge.prior_path or f"{self.run.folder}/prior/export"

    @property
    def model_export(self) -> str:
        return self.sample.model_path or f"{self.run.folder}/finetune/export"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_combinations(self)
        return self
