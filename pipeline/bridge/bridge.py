"""The bridge that a network is trained on and sampled with, as one object of tables and choices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .alignment import align
from .schedule import BridgeTable
from .targets import Target, Weighting, bridge_v, eps_psi, z0_from_eps_psi, z0_from_v


@dataclass(frozen=True)
class Bridge:
    """Table of coefficients, SAF times, network target and weighting of the loss. Latents are (B, F, C, h, w)."""

    table: BridgeTable
    aligned_t: Tensor | None = None  # t~ of every index, (N,); None: the network sees the bridge's own latent and time
    target: Target = "noise"
    weighting: Weighting = "uniform"

    def network_input(self, z_t: Tensor, prior: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network sees, on the latent's device: (z_t, index), or with SAF (z~_t, t~) of eq. 24.

        The timestep (B,) is a float in 0..999; edge "cogvideox" of SAF reaches 1000.
        """
        if self.aligned_t is None:
            return z_t, index.to(z_t.device, z_t.dtype)
        return align(z_t, prior, self.table, index), self.aligned_t[index].to(z_t.device, z_t.dtype)

    def target_of(self, z_t: Tensor, z0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return the answer that the loss compares the network's prediction with, (B, F, C, h, w)."""
        if self.target == "v":
            return bridge_v(z0, noise, self.table, index)
        return z0 if self.target == "z0" else eps_psi(z_t, z0, self.table, index)

    def clean_of(self, z_t: Tensor, prior: Tensor, prediction: Tensor, index: Tensor) -> Tensor:
        """Return the clean estimate z0_hat (B, F, C, h, w) that a prediction implies."""
        if self.target == "v":
            return z0_from_v(z_t, prior, prediction, self.table, index)
        return prediction if self.target == "z0" else z0_from_eps_psi(z_t, prediction, self.table, index)

    def loss_weight(self, index: Tensor) -> Tensor:
        """Return the factor of each sample's squared error, (B,) float64: 1 (uniform), or eq. 17's (noise).

        An error d of eps_psi is an error d sigma_t/alpha_t of z_0 and d sigma_t sqrt(a_t^2 + c_t^2)/(alpha_t c_t) of v.
        For gmax and v the factor is a_t/(a_t^2 + c_t^2), the authors' CogVideoX weight.
        """
        table = self.table
        alpha, sigma, a, c = (column[index] for column in (table.alpha, table.sigma, table.a, table.c))
        if self.weighting == "uniform" or self.target == "noise":
            return torch.ones_like(alpha)
        clean = (alpha / sigma) ** 2
        return clean if self.target == "z0" else clean * c**2 / (a**2 + c**2)
