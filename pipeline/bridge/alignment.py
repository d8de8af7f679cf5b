"""SNR-aligned fine-tuning (SAF, eq. 24): the bridge's z_t as a diffusion model was trained to see it.

Without the prior's share, z_t is a diffusion latent of signal a_t and noise c_t. Divided by
sqrt(a_t^2 + c_t^2) it is variance preserving, and belongs to the pre-trained timestep t~ with
SNR(t~) = a_t^2/c_t^2 = SNR_t - SNR_T (Proposition 2). Between the pre-trained steps, t~ is interpolated linearly in
sqrt(SNR). Any pre-trained schedule that decreases will do, whether it ends at zero or not (see
`schedule.ddpm_alphas_cumprod`).

Edges. Near t = 0 the bridge's sqrt(SNR) exceeds the first entry of the pre-trained grid, and near T it may fall below
the last. The authors' code bases differ here. Sample a model with the convention that it was tuned with:
  latte      every SNR above the first entry has t~ = 0, every SNR below the last entry has the last step;
  cogvideox  the bridge's largest sqrt(SNR) is added to the first entry, so that nothing is above the grid. Everything
             above the *second* entry then shares the long segment between t~ = 0 and 1. Below the last entry, another
             segment leads to t~ = M, where SNR would be 0. VideoCrafter's code does the same.
The bridge falls below the last entry only if the schedule ends with much signal. VideoCrafter's does: the last 53 of
the bridge's 1000 times lie below it. Latte's and CogVideoX's do not.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .schedule import BridgeTable

Edge = Literal["latte", "cogvideox"]


def aligned_timesteps(table: BridgeTable, alphas_cumprod: Tensor, edge: Edge = "latte") -> Tensor:
    """Return t~ (eq. 24) for every index of the bridge's grid, (N,) float64 in 0..M-1; edge "cogvideox" reaches M.

    alphas_cumprod (M,) float64 is the pre-trained schedule; `edge` names the convention (see above). Raises ValueError
    for an unknown edge, or a schedule that does not decrease.
    """
    if edge not in get_args(Edge):
        raise ValueError(f"alignment edge {edge!r} is not known; choose one of {', '.join(get_args(Edge))}")
    alphas_cumprod = alphas_cumprod.double()
    if not bool((alphas_cumprod.diff() < 0).all()):
        raise ValueError("alphas_cumprod must decrease from step to step, or t~ would not be unique")
    bridge = table.root_snr
    pretrained = (alphas_cumprod / (1 - alphas_cumprod)).sqrt()
    if edge == "cogvideox":
        pretrained[0] += bridge.max()
        pretrained = torch.cat([pretrained, pretrained.new_zeros(1)])
    # np.interp wants increasing abscissae; sqrt(SNR) decreases with the step
    t = np.interp(bridge.cpu().numpy(), pretrained.flip(0).cpu().numpy(), np.arange(len(pretrained))[::-1])
    return torch.from_numpy(t).to(table.t.device)


def align(z_t: Tensor, prior: Tensor, table: BridgeTable, index: Tensor) -> Tensor:
    """Return z~_t = (z_t - b_t z_T) / sqrt(a_t^2 + c_t^2) (eq. 24), (B, F, C, h, w)."""
    k = table.at(index, z_t)
    return (z_t - k.b * prior) / (k.a**2 + k.c**2).sqrt()
