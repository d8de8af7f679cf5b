"""Section `bridge`: the process that is trained, where it starts, and the diffusion model that it is aligned to."""

from typing import Literal

from pydantic import PositiveFloat

from .section import InsideZeroOne, Problems, Section


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
    pretrained_beta_start: InsideZeroOne
    pretrained_beta_end: InsideZeroOne
    pretrained_snr_shift: PositiveFloat
    pretrained_zero_terminal_snr: bool
    time_noise: PositiveFloat | None
    time_noise_power: PositiveFloat

    @property
    def starts_at_neural_prior(self) -> bool:
        """Whether the bridge starts at F_eta's output; diffusion starts at noise whatever `prior` says."""
        return self.process == "bridge" and self.prior == "neural"

    def contradictions(self) -> Problems:
        """Noise grows with time; SAF, weighting and target fit the process."""
        if self.beta0 > self.beta1:
            yield f"bridge.beta0 = {self.beta0} exceeds bridge.beta1 = {self.beta1}; noise must grow with time"
        if self.pretrained_beta_start > (end := self.pretrained_beta_end):
            yield f"bridge.pretrained_beta_start = {self.pretrained_beta_start} exceeds pretrained_beta_end = {end}"
        if self.process == "diffusion" and self.loss_weight != "uniform":
            yield f"bridge.loss_weight = {self.loss_weight} applies to bridges only; with process diffusion set uniform"
        if self.process == "diffusion" and self.pretrained_zero_terminal_snr and self.target == "noise":
            why = "a model that predicts noise learns nothing about the clip from its last step"
            yield f"bridge.pretrained_zero_terminal_snr = true: {why}; set bridge.target v or z0"
        if self.saf and self.process == "diffusion":
            yield "bridge.saf = true applies to bridges only; with bridge.process = diffusion set bridge.saf false"
