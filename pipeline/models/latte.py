"""Latte (Ma et al. 2024, variant 1): a video transformer whose blocks alternate between space and time.

Parameter names are the published checkpoints'. Legend: B clips, F frames, C channels, h x w latent,
L tokens a frame, D hidden size, p patch size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F_
from torch.utils.checkpoint import checkpoint


class LatteSize(NamedTuple):
    """One row of the Latte paper's table of sizes."""

    depth: int
    hidden_size: int
    num_heads: int


LATTE_SIZES: dict[str, LatteSize] = {
    "S": LatteSize(12, 384, 6),
    "B": LatteSize(12, 768, 12),
    "L": LatteSize(24, 1024, 16),
    "XL": LatteSize(28, 1152, 16),
}


def sinusoid(position: Tensor, size: int) -> Tensor:
    """Sine-cosine features of (N,) positions, (N, size) float64: `size`/2 sines, then as many cosines."""
    frequency = 10000.0 ** -(torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angle = position.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sinusoid_grid(side: int, size: int) -> Tensor:
    """Features of a side x side grid, row by row, (side^2, size) float64: column's half, then row's."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sinusoid(column.flatten(), size // 2), sinusoid(row.flatten(), size // 2)], dim=1)


def sinusoid_of_time(t: Tensor, size: int) -> Tensor:
    """Features of timesteps (B,), (B, size) float32: `size`/2 cosines, then as many sines (Ho et al. 2020)."""
    half = size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (B, F, L, D) with shift and scale (B, 1, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class TimestepEmbedder(nn.Module):
    """A continuous timestep (B,) on the scale 0..999 to (B, D): 256 sinusoids, then a two-layer network."""

    frequencies = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.frequencies, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t: Tensor) -> Tensor:
        features = sinusoid_of_time(t, self.frequencies)
        out: Tensor = self.mlp(features.to(self.mlp.get_parameter("0.weight").dtype))
        return out


class LabelEmbedder(nn.Module):
    """Class labels (B,) int64 to (B, D). Row `num_classes` is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        out: Tensor = self.embedding_table(y)
        return out


class PatchEmbed(nn.Module):
    """Frames (N, C, h, w) to tokens (N, L, D)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over the last but one dimension of (..., N, D)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        *batch, tokens, size = x.shape
        qkv = self.qkv(x).view(-1, tokens, 3, self.num_heads, size // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F_.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*batch, tokens, size)
        projected: Tensor = self.proj(out)
        return projected


class Mlp(nn.Module):
    """D -> 4 D -> D with the tanh approximation of GELU."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F_.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """DiT block with adaLN-zero on (B, F, L, D), attending over a frame's tokens or over a token's frames."""

    def __init__(self, hidden_size: int, num_heads: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.attn = Attention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(c)[:, None, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        attended = modulate(self.norm(x), shift_a, scale_a)
        if self.temporal:
            attended = self.attn(attended.transpose(1, 2)).transpose(1, 2)
        else:
            attended = self.attn(attended)
        x = torch.addcmul(x, gate_a, attended)
        return torch.addcmul(x, gate_m, self.mlp(modulate(self.norm(x), shift_m, scale_m)))


class FinalLayer(nn.Module):
    """Tokens (B, F, L, D) to patches (B, F, L, p p C_out), channels last."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return out


class Latte(nn.Module):
    """The backbone of the bridge, of its diffusion counterpart and of the neural prior.

    input_size: h = w of the latent. num_frames: frames of the *input*, with the image's extra frame where
    there is one. out_channels: of the prediction; `learn_sigma` doubles it. num_classes: without the null
    class, whose label is num_classes. time_embedding=False leaves the timestep out (eq. 8's neural prior).
    Weights are drawn from `seed`, and the global generator is left as it was; on the meta device nothing is
    drawn. Raises ValueError where the sizes do not fit each other.
    """

    pos_embed: Tensor
    temp_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_frames: int,
        num_classes: int,
        out_channels: int = 4,
        learn_sigma: bool = False,
        time_embedding: bool = True,
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(
                f"a latent of {input_size} x {input_size} cannot be cut into patches of {patch_size}: "
                "choose a patch size that divides it"
            )
        if depth < 2 or depth % 2:
            raise ValueError(f"{depth=} must be even: spatial and temporal blocks alternate")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"{hidden_size=} must be a multiple of 4 and of {num_heads=}")
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.out_channels = out_channels * (2 if learn_sigma else 1)
        self.num_frames = num_frames
        self.null_class = num_classes
        self.activation_checkpointing = activation_checkpointing
        side = input_size // patch_size
        self.register_buffer("pos_embed", sinusoid_grid(side, hidden_size)[None].float())
        self.register_buffer("temp_embed", sinusoid(torch.arange(num_frames), hidden_size)[None].float())
        with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw from the global generator when built
            self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
            self.t_embedder = TimestepEmbedder(hidden_size) if time_embedding else None
            self.y_embedder = LabelEmbedder(num_classes, hidden_size)
            self.blocks = nn.ModuleList(Block(hidden_size, num_heads, temporal=i % 2 == 1) for i in range(depth))
            self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """DiT's initialisation (Peebles & Xie 2023): Xavier, and zeros where a block or the output starts."""
        device = self.x_embedder.proj.weight.device
        if device.type == "meta":
            return
        generator = torch.Generator(device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        patches = self.x_embedder.proj
        nn.init.xavier_uniform_(patches.weight.view(patches.out_channels, -1), generator=generator)
        if patches.bias is not None:
            nn.init.zeros_(patches.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02, generator=generator)
        if self.t_embedder is not None:
            for name in ("0.weight", "2.weight"):
                nn.init.normal_(self.t_embedder.mlp.get_parameter(name), std=0.02, generator=generator)
        nn.init.zeros_(self.final_layer.linear.weight)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                nn.init.zeros_(module.adaLN_modulation.get_parameter("1.weight"))

    def forward(self, x: Tensor, t: Tensor | None, y: Tensor) -> Tensor:
        """x (B, F, C, h, w), t (B,) on the scale 0..999, y (B,) int64 to the prediction (B, F, C_out, h, w).

        t is None exactly where the model has no time embedding. Computes in the dtype of the weights.
        Raises ValueError where the input does not fit the model.
        """
        frames, channels = x.shape[1:3]
        if (frames, channels) != (self.num_frames, self.in_channels):
            raise ValueError(
                f"Latte was built for {self.num_frames} frames of {self.in_channels} channels, "
                f"and was given {frames} frames of {channels}: x is (B, F, C, h, w)"
            )
        if (t is None) != (self.t_embedder is None):
            raise ValueError(
                "a timestep is needed exactly when the model has a time embedding; "
                f"t is {'missing' if t is None else 'given'}"
            )
        h, w = (size // self.patch_size for size in x.shape[-2:])
        x = self.x_embedder(x.flatten(0, 1).to(self.x_embedder.proj.weight.dtype))
        x = (x + self.pos_embed.to(x.dtype)).unflatten(0, (-1, frames))
        c = self.y_embedder(y)
        if self.t_embedder is not None:
            c = c + self.t_embedder(t)
        for i, block in enumerate(self.blocks):
            if i == 1:  # the first temporal block
                x = x + self.temp_embed.to(x.dtype)[:, :, None]
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, c, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, c)
        patches = self.final_layer(x, c)
        p = self.patch_size
        grid = patches.unflatten(-1, (p, p, self.out_channels)).unflatten(2, (h, w))  # B F h w p p C
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
