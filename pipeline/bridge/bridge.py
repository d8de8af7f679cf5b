"""The bridge that a network is trained on and sampled with, as one object of tables and choices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .alignment import network_input
from .schedule import BridgeTable
from .targets import Target, Weighting, clean_of, loss_weight, q_sample, target_of


@dataclass(frozen=True)
class Bridge:
    """Table of coefficients, SAF times, network target and weighting of the loss. Latents are (B, F, C, h, w)."""

    table: BridgeTable
    aligned_t: Tensor | None = None  # t~ of every index, (N,); None: the network sees the bridge's own latent and time
    target: Target = "noise"
    weighting: Weighting = "uniform"

    def q_sample(self, z0: Tensor, prior: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Eq. 12: z_t at `index` (B,) int64."""
        return q_sample(z0, prior, noise, self.table, index)

    def network_input(self, z_t: Tensor, prior: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent and the timestep (B,) that the network sees; with SAF they are z~_t and t~ (eq. 24)."""
        return network_input(z_t, prior, self.table, index, self.aligned_t)

    def target_of(self, z_t: Tensor, z0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return the answer that the loss compares the network's prediction with."""
        return target_of(self.target, z_t, z0, noise, self.table, index)

    def clean_of(self, z_t: Tensor, prior: Tensor, prediction: Tensor, index: Tensor) -> Tensor:
        """Return the clean estimate z0_hat that a prediction implies."""
        return clean_of(self.target, z_t, prior, prediction, self.table, index)

    def loss_weight(self, index: Tensor) -> Tensor:
        """Return the factor of each sample's squared error, (B,) float64."""
        return loss_weight(self.target, self.weighting, self.table, index)
