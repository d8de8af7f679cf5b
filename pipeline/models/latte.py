"""Latte (Ma et al. 2024, variant 1): a video transformer whose blocks alternate between space and time.

Parameter names are those of the published checkpoints. Legend: B clips, F frames, C channels, h x w latent,
L tokens per frame, D hidden size, p patch size.
"""

import math
from collections import OrderedDict
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
    """Compute sine-cosine features (N, size), float64, of positions (N,): `size`/2 sines, then `size`/2 cosines."""
    frequency = 10000.0 ** -(torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angle = position.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sinusoid_grid(side: int, size: int) -> Tensor:
    """Compute features (side^2, size), float64, of a square grid, row by row: half for the column, half for the row."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([sinusoid(column.flatten(), size // 2), sinusoid(row.flatten(), size // 2)], dim=1)


def sinusoid_of_time(t: Tensor, size: int) -> Tensor:
    """Compute features (B, size), float32, of timesteps (B,): first cosines, then sines (Ho et al. 2020)."""
    half = size // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def embedding_network(inputs: int, size: int) -> nn.Sequential:
    """Build the network that turns sinusoids (B, inputs) into an embedding (B, size)."""
    return nn.Sequential(nn.Linear(inputs, size), nn.SiLU(), nn.Linear(size, size))


def attend(q: Tensor, k: Tensor, v: Tensor, head_size: int) -> Tensor:
    """Compute multi-head attention of queries (N, L, D) over keys and values (N, M, D)."""
    q, k, v = (x.unflatten(-1, (-1, head_size)).transpose(1, 2) for x in (q, k, v))  # N heads L head_size
    return F_.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale x (B, F, L, D) by adaLN; shift and scale are (B, 1, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class TimestepEmbedder(nn.Module):
    """Embed continuous timesteps (B,) on the scale 0..999 as (B, D): 256 sinusoids, then a two-layer network."""

    frequencies = 256

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = embedding_network(self.frequencies, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """Embed timesteps (B,) as (B, D)."""
        return self.mlp(sinusoid_of_time(t, self.frequencies).to(self.mlp.get_parameter("0.weight").dtype))


class Attention(nn.Module):
    """Multi-head self-attention over the second to last dimension of (..., N, D)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the N tokens of x (..., N, D); the shape stays."""
        q, k, v = self.qkv(x).flatten(0, -3).chunk(3, dim=-1)
        return self.proj(attend(q, k, v, x.shape[-1] // self.num_heads).view(x.shape))


class Block(nn.Module):
    """DiT block with adaLN-zero; it attends over the tokens of a frame, or over all frames at one token's place."""

    def __init__(self, hidden_size: int, num_heads: int, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.attn = Attention(hidden_size, num_heads)
        widen, narrow = nn.Linear(hidden_size, 4 * hidden_size), nn.Linear(4 * hidden_size, hidden_size)
        self.mlp = nn.Sequential(OrderedDict(fc1=widen, act=nn.GELU(approximate="tanh"), fc2=narrow))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Transform tokens x (B, F, L, D) under the condition c (B, D); the shape stays."""
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
    """Project tokens to patches of the output."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Turn tokens (B, F, L, D) and the condition c (B, D) into patches (B, F, L, p p C_out), channels last."""
        shift, scale = self.adaLN_modulation(c)[:, None, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class Latte(nn.Module):
    """Backbone of the bridge, of its diffusion counterpart and of the neural prior.

    input_size: height and width of the latent. num_frames: frames of the input, including the image's extra frame
    if there is one. out_channels: channels of the prediction; `learn_sigma` doubles them. num_classes: classes
    without the null class, whose label is num_classes. time_embedding: False leaves out the timestep, as the
    neural prior of eq. 8 does. Draws weights from `seed` and leaves the global generator unchanged; draws nothing
    on the meta device. Raises ValueError if the sizes do not fit each other.
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
                f"a latent of {input_size} x {input_size} cannot be cut into patches of {patch_size}: choose a divisor"
            )
        if depth < 2 or depth % 2:
            raise ValueError(f"{depth=} must be even: spatial and temporal blocks alternate")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"{hidden_size=} must be a multiple of 4 and of {num_heads=}")
        self.patch_size, self.num_frames, self.null_class = patch_size, num_frames, num_classes
        self.in_channels, self.out_channels = in_channels, out_channels * (2 if learn_sigma else 1)
        self.activation_checkpointing = activation_checkpointing
        side = input_size // patch_size
        self.register_buffer("pos_embed", sinusoid_grid(side, hidden_size)[None].float())
        self.register_buffer("temp_embed", sinusoid(torch.arange(num_frames), hidden_size)[None].float())
        with torch.random.fork_rng(devices=[]):  # PyTorch draws from the global generator when it builds a layer
            patches = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
            self.x_embedder = nn.Sequential(OrderedDict(proj=patches))
            self.t_embedder = TimestepEmbedder(hidden_size) if time_embedding else None
            classes = nn.Embedding(num_classes + 1, hidden_size)  # the last is the null class of guidance
            self.y_embedder = nn.Sequential(OrderedDict(embedding_table=classes))
            self.blocks = nn.ModuleList(Block(hidden_size, num_heads, temporal=i % 2 == 1) for i in range(depth))
            self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Initialise as DiT does (Peebles & Xie 2023): Xavier weights, and zeros in modulations and the output."""
        patches = self.x_embedder.get_parameter("proj.weight")
        if patches.device.type == "meta":
            return
        generator = torch.Generator(patches.device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(patches.view(len(patches), -1), generator=generator)
        nn.init.zeros_(self.x_embedder.get_parameter("proj.bias"))
        nn.init.normal_(self.y_embedder.get_parameter("embedding_table.weight"), std=0.02, generator=generator)
        if self.t_embedder is not None:
            for name in ("0.weight", "2.weight"):
                nn.init.normal_(self.t_embedder.mlp.get_parameter(name), std=0.02, generator=generator)
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor | None, y: Tensor) -> Tensor:
        """Predict (B, F, C_out, h, w) from x (B, F, C, h, w), t (B,) on the scale 0..999 and labels y (B,), int64.

        t is None if and only if the model has no time embedding. Computes in the dtype of the weights.
        Raises ValueError if the input does not fit the model.
        """
        frames, channels = x.shape[1:3]
        if (frames, channels) != (self.num_frames, self.in_channels):
            raise ValueError(
                f"Latte was built for {self.num_frames} frames of {self.in_channels} channels, "
                f"but got {frames} frames of {channels}: x is (B, F, C, h, w)"
            )
        if (t is None) != (self.t_embedder is None):
            raise ValueError(
                "a model with a time embedding needs a timestep, and one without takes none; "
                f"t is {'missing' if t is None else 'given'}"
            )
        h, w = (size // self.patch_size for size in x.shape[-2:])
        x = self.x_embedder(x.flatten(0, 1).to(self.x_embedder.get_parameter("proj.weight").dtype))
        x = x.flatten(2).transpose(1, 2)  # (B F) L D
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
        p = self.patch_size
        grid = self.final_layer(x, c).unflatten(-1, (p, p, self.out_channels)).unflatten(2, (h, w))  # B F h w p p C
        return grid.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
