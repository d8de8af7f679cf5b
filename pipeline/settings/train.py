"""Sections `train` and `prior`: the training of the video network, and of the neural prior F_eta."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from .model import ModelSettings
from .section import BelowOne, Fraction, NonNegative, Section


class LoraSettings(Section):
    """Low-rank adapters."""

    rank: PositiveInt | None
    alpha: PositiveInt
    targets: list[str] | None

    def without_effect(self, key: str) -> dict[str, str]:
        """Everything else while there are no adapters."""
        if self.rank is not None:
            return {}
        return dict.fromkeys(("alpha", "targets"), f"with {key}.rank = null; leave it out, or set {key}.rank")


class TrainSettings(Section):
    """Initial weights, batches, optimizer, precision, checkpoints and validation of one training."""

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
    adam_betas: tuple[BelowOne, BelowOne]
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

    def check(self, key: str, most_workers: int, gpus: float) -> None:
        """Raise ValueError where these settings contradict each other or the cluster's; `key` is the section's name."""
        self._check_batch(key, most_workers)
        self._check_optimizer(key, gpus)

    def _check_batch(self, key: str, workers: int) -> None:
        if self.global_batch < workers:
            raise ValueError(
                f"{key}.global_batch = {self.global_batch} leaves some of cluster.train.workers = {workers} without a "
                f"clip; use at least {workers}, or fewer workers"
            )
        if self.optimizer == "muon" and self.zero_stage:
            raise ValueError(
                f"{key}.optimizer = muon with {key}.zero_stage = {self.zero_stage}: ZeRO cuts the matrices that Muon "
                f"takes whole; set {key}.zero_stage 0, or {key}.optimizer adamw"
            )
        if self.warmup_steps > self.steps:
            raise ValueError(f"{key}.warmup_steps = {self.warmup_steps} exceeds {key}.steps = {self.steps}")

    def _check_optimizer(self, key: str, gpus: float) -> None:
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError(
                f"{key}.offload_optimizer = true with {key}.zero_stage = 0: ZeRO is what keeps the optimizer apart; "
                f"set {key}.zero_stage 1, 2 or 3"
            )
        if self.offload_optimizer and not gpus:
            raise ValueError(
                f"{key}.offload_optimizer = true with cluster.train.num_gpus = 0: its state is in the CPU's memory "
                f"already; set {key}.offload_optimizer false"
            )
        if self.lora.rank is not None and self.init is None:
            raise ValueError(
                f"{key}.lora.rank = {self.lora.rank} trains adapters beside pre-trained weights, but {key}.init is "
                f"null; set {key}.init, or {key}.lora.rank null"
            )


class PriorSettings(Section):
    """The neural prior F_eta: what it does not state is as in `model` and `train`."""

    model: ModelSettings
    train: TrainSettings
