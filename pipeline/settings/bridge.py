"""Section `bridge`: the process that is trained, where it starts, and the diffusion model that it is aligned to."""

from typing import Literal, Self

from pydantic import PositiveFloat, model_validator

from .section import BelowOne, Section


class BridgeSettings(Section):
    """Process, end point, noise schedule, network target, SNR-aligned fine-tuning and TimeNoise."""

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
    pretrained_beta_start: BelowOne
    pretrained_beta_end: BelowOne
    pretrained_snr_shift: PositiveFloat
    pretrained_zero_terminal_snr: bool
    time_noise: PositiveFloat | None
    time_noise_power: PositiveFloat

    @property
    def starts_at_neural_prior(self) -> bool:
        """Whether the bridge starts at F_eta's output; diffusion starts at noise whatever `prior` says."""
        return self.process == "bridge" and self.prior == "neural"

    @property
    def uses_pretrained_schedule(self) -> bool:
        """Whether the `pretrained_*` settings decide anything: diffusion runs on them, and SAF aligns to them."""
        return self.process == "diffusion" or self.saf

    def without_effect(self, key: str) -> dict[str, str]:
        """Settings of the other process, of SAF and of TimeNoise where these are off."""
        found = {}
        if self.process == "diffusion":
            cause = "with bridge.process = diffusion; leave it out, or set bridge.process bridge"
            found = dict.fromkeys(("schedule", "beta0", "beta1", "saf_edge"), cause)
        elif not self.saf:
            found["saf_edge"] = "with bridge.saf = false; leave it out, or set bridge.saf true"
        if not self.uses_pretrained_schedule:
            cause = "with bridge.process = bridge and bridge.saf = false; leave it out, or set bridge.saf true"
            found |= dict.fromkeys((name for name in type(self).model_fields if name.startswith("pretrained_")), cause)
        if self.target == "noise" and self.loss_weight == "noise":
            found["loss_weight"] = (
                "with bridge.target = noise, whose errors count so already; set it uniform, or bridge.target v or z0"
            )
        if self.time_noise is None:
            found["time_noise_power"] = "with bridge.time_noise = null; leave it out, or set bridge.time_noise"
        return found

    @model_validator(mode="after")
    def _check_schedules(self) -> Self:
        if self.beta0 > self.beta1:
            raise ValueError(
                f"bridge.beta0 = {self.beta0} exceeds bridge.beta1 = {self.beta1}; noise must grow with time"
            )
        if not 0 < self.pretrained_beta_start <= self.pretrained_beta_end:
            raise ValueError(
                f"bridge.pretrained_beta_start = {self.pretrained_beta_start}: expected above 0 and at most "
                f"pretrained_beta_end = {self.pretrained_beta_end}"
            )
        return self

    @model_validator(mode="after")
    def _check_process(self) -> Self:
        if self.process == "diffusion" and self.loss_weight != "uniform":
            raise ValueError(
                f"bridge.loss_weight = {self.loss_weight} is of bridges; with process diffusion set uniform"
            )
        if self.process == "diffusion" and self.pretrained_zero_terminal_snr and self.target == "noise":
            raise ValueError(
                "bridge.pretrained_zero_terminal_snr = true: at its last step a noise-predicting diffusion model says "
                "nothing of the clip; set bridge.target v or z0"
            )
        return self
