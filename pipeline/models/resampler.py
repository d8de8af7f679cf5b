"""DynamiCrafter's image-token resampler (Xing et al. 2023, section 3.2), with the published names.

It follows IP-Adapter's and Flamingo's. Learned queries for each frame attend over the tokens of a CLIP image encoder;
the U-Net's cross-attention reads the results. Legend: B clips, F frames, Q queries per frame, L image tokens, D width.
"""

import torch
from torch import Tensor, nn

from .latte import attend
from .unet3d_layers import initialise_uniform


class PerceiverAttention(nn.Module):
    """Attention of queries over the image's tokens and over the queries themselves."""

    def __init__(self, size: int, head_size: int, heads: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.to_q = nn.Linear(size, heads * head_size, bias=False)
        self.to_kv = nn.Linear(size, 2 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, size, bias=False)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        """Attend from queries (B, N, D) over image tokens x (B, L, D) and the queries; return (B, N, D)."""
        x, queries = self.norm1(x), self.norm2(queries)
        k, v = self.to_kv(torch.cat([x, queries], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(queries), k, v, self.head_size))


class Resampler(nn.Module):
    """Turn CLIP image tokens (B, L, embedding_size) into tokens for each frame (B, F, Q, out_size).

    The defaults are DynamiCrafter's for 16 frames. Draws weights from `seed` and leaves the global generator unchanged.
    """

    def __init__(
        self,
        *,
        size: int = 1024,
        depth: int = 4,
        head_size: int = 64,
        heads: int = 12,
        queries: int = 16,
        frames: int = 16,
        embedding_size: int = 1280,
        out_size: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.frames = frames
        with torch.random.fork_rng(devices=[]):  # PyTorch draws from the global generator when it builds a layer
            self.latents = nn.Parameter(torch.empty(1, queries * frames, size))
            self.proj_in = nn.Linear(embedding_size, size)
            self.proj_out = nn.Linear(size, out_size)
            self.norm_out = nn.LayerNorm(out_size)
            self.layers = nn.ModuleList(
                nn.ModuleList([PerceiverAttention(size, head_size, heads), feed_forward(size)]) for _ in range(depth)
            )
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw queries of length about 1, and weights uniformly from +-1/sqrt(inputs)."""
        if self.latents.device.type == "meta":
            return
        generator = torch.Generator(self.latents.device).manual_seed(seed)
        self.latents.normal_(std=self.latents.shape[-1] ** -0.5, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise_uniform(module, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Turn image tokens x (B, L, embedding_size) into (B, F, Q, out_size), in the dtype of the weights."""
        x = self.proj_in(x.to(self.latents.dtype))
        queries = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            attention, feed = layer.children()
            queries = queries + attention(x, queries)
            queries = queries + feed(queries)
        return self.norm_out(self.proj_out(queries)).unflatten(1, (self.frames, -1))


def feed_forward(size: int) -> nn.Sequential:
    """Build a norm and a feed-forward network D -> 4 D -> D without biases."""
    widen, narrow = nn.Linear(size, 4 * size, bias=False), nn.Linear(4 * size, size, bias=False)
    return nn.Sequential(nn.LayerNorm(size), widen, nn.GELU(), narrow)
