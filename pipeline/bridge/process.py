"""Settings -> tables: the one place where a `bridge` section becomes numbers, for training and for sampling."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..settings import BridgeSettings
from .alignment import aligned_timesteps
from .schedule import SCHEDULES, BridgeTable, bridge_grid, ddpm_alphas_cumprod


class Process(NamedTuple):
    """The bridge on its grid, the pre-trained diffusion schedule, and with SAF t~ of every grid index."""

    table: BridgeTable
    alphas_cumprod: Tensor  # (1000,)
    aligned_t: Tensor | None  # (1000,); None: the network sees the bridge's own time


def process_of(bridge: BridgeSettings) -> Process:
    """All of it on the CPU, in float64."""
    table = bridge_grid(SCHEDULES[bridge.schedule](bridge.beta0, bridge.beta1))
    alphas_cumprod = ddpm_alphas_cumprod(
        bridge.pretrained_beta_start,
        bridge.pretrained_beta_end,
        scaled=bridge.pretrained_betas == "scaled_linear",
        snr_shift=bridge.pretrained_snr_shift,
        zero_terminal_snr=bridge.pretrained_zero_terminal_snr,
    )
    aligned_t = aligned_timesteps(table, alphas_cumprod, bridge.saf_edge) if bridge.saf else None
    return Process(table, alphas_cumprod, aligned_t)
