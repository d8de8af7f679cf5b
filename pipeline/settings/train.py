"""Sections `train` and `prior`: the training of the video network, and of the neural prior F_eta."""

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from .model import ModelSettings
from .section import BelowOne, Fraction, InsideZeroOne, Problems, Section


class LoraSettings(Section):
    """Low-rank adapters."""

    rank: PositiveInt | None
    alpha: PositiveInt
    targets: list[str] | None


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
    warmup_steps: NonNegativeInt
    lr_schedule: Literal["constant", "cosine"]
    weight_decay: NonNegativeFloat
    adam_betas: tuple[BelowOne, BelowOne]
    clip_norm: PositiveFloat | None
    precision: Literal["bfloat16", "float32"]
    zero_stage: Literal[0, 1, 2, 3]
    offload_optimizer: bool
    activation_checkpointing: bool
    compile: bool
    label_dropout: Fraction
    damaged_clips: Literal["stop", "skip"]
    ema_decay: InsideZeroOne | None
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    keep_by: Literal["time", "validation_loss"]
    log_every: PositiveInt
    validate_every: PositiveInt
    validate_clips: PositiveInt

    def contradictions(self) -> Problems:
        """Warm-up ends before training, and optimizer and adapters get what they need."""
        if self.warmup_steps > self.steps:
            yield f"train.warmup_steps = {self.warmup_steps} exceeds train.steps = {self.steps}; lower it"
        if self.optimizer == "muon" and self.zero_stage:
            reason = f"ZeRO (train.zero_stage = {self.zero_stage}) cuts matrices that Muon needs whole"
            yield f"train.optimizer = muon: {reason}; set train.zero_stage 0, or train.optimizer adamw"
        if self.offload_optimizer and not self.zero_stage:
            yield "train.offload_optimizer = true needs ZeRO, but train.zero_stage is 0; set it 1, 2 or 3"
        if self.lora.rank is not None and self.init is None:
            needs = "trains adapters beside pre-trained weights, but train.init is null"
            yield f"train.lora.rank = {self.lora.rank} {needs}; set train.init, or train.lora.rank null"


class PriorSettings(Section):
    """The neural prior F_eta. What it does not state is as in `model` and `train`."""

    model: ModelSettings
    train: TrainSettings
