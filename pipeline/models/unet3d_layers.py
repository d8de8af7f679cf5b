"""Layers of the VideoCrafter / DynamiCrafter U-Net (Chen et al. 2023, Xing et al. 2023), with the published names.

Legend: B clips, F frames, C channels, h x w latent at the layer's resolution, N = B F frames, L tokens, D width.
A batch of frames is (N, C, h, w); temporal layers reshape it to B clips of F frames.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from .latte import attend

GROUPS = 32  # in every group norm


def initialise_uniform(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, generator: torch.Generator) -> None:
    """Draw weights and biases uniformly from +-1/sqrt(inputs), as PyTorch does, but from `generator`."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    layer.weight.uniform_(-bound, bound, generator=generator)
    if layer.bias is not None:
        layer.bias.uniform_(-bound, bound, generator=generator)


def normed(channels: int, *then: nn.Module) -> nn.Sequential:
    """Build a group norm and a SiLU before the layers `then`."""
    return nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), *then)


class CrossAttention(nn.Module):
    """Attention over text; without text, self-attention.

    With `image`, a second pair of projections attends over image tokens. Their output is added
    with the learned weight 1 + tanh(alpha) (DynamiCrafter, section 3.2).
    """

    def __init__(self, size: int, head_size: int, context_size: int | None = None, image: bool = False) -> None:
        super().__init__()
        self.head_size = head_size
        context_size = context_size or size
        self.to_q = nn.Linear(size, size, bias=False)
        self.to_k = nn.Linear(context_size, size, bias=False)
        self.to_v = nn.Linear(context_size, size, bias=False)
        self.to_out = nn.Sequential(nn.Linear(size, size))
        if image:
            self.to_k_ip = nn.Linear(context_size, size, bias=False)
            self.to_v_ip = nn.Linear(context_size, size, bias=False)
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, text: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        """Attend from tokens x (N, L, D) over text and image tokens (N, M, context_size)."""
        q, context = self.to_q(x), x if text is None else text
        out = attend(q, self.to_k(context), self.to_v(context), self.head_size)
        if image is not None:
            seen = attend(q, self.to_k_ip(image), self.to_v_ip(image), self.head_size)
            out = torch.addcmul(out, seen, 1 + self.alpha.tanh())
        return self.to_out(out)


class TransformerBlock(nn.Module):
    """Self-attention, attention over text and image tokens, feed-forward: each normalises its input and adds to it."""

    def __init__(self, size: int, head_size: int, context_size: int | None = None, image: bool = False) -> None:
        from diffusers.models.attention import FeedForward  # slow import; other backbones skip it

        super().__init__()
        self.attn1 = CrossAttention(size, head_size)
        self.attn2 = CrossAttention(size, head_size, context_size, image)
        self.ff = FeedForward(size, activation_fn="geglu")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size) for _ in range(3))

    def forward(self, x: Tensor, text: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        """Transform tokens x (N, L, D); text and image are as in CrossAttention."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, image)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer block over the pixels of each frame, with cross-attention over the frame's text and image tokens."""

    def __init__(self, channels: int, head_size: int, context_size: int, image: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, head_size, context_size, image)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
        """Transform frames x (N, C, h, w); text and image are (N, tokens, context_size)."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        tokens = self.proj_out(self.transformer_blocks[0](tokens, text, image))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class TemporalTransformer(nn.Module):
    """Transformer block over the frames at each pixel; both its attentions are self-attention.

    With heads=None, the block is as wide as the channels, and its projections are linear. Otherwise it is
    heads * head_size wide, and its projections are convolutions of width 1, as in the published `init_attn`.
    """

    def __init__(self, channels: int, head_size: int, heads: int | None = None) -> None:
        super().__init__()
        size = channels if heads is None else heads * head_size
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, size) if heads is None else nn.Conv1d(channels, size, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(size, head_size)])
        self.proj_out = nn.Linear(size, channels) if heads is None else nn.Conv1d(size, channels, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Transform x (N, C, h, w) over its clips of `frames` frames; the shape stays."""
        clips = x.unflatten(0, (-1, frames))
        normed = self.norm(clips.transpose(1, 2))  # B C F h w: the statistics cover the whole clip
        tokens = normed.permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B h w) F C
        tokens = project(self.proj_out, self.transformer_blocks[0](project(self.proj_in, tokens)))
        return x + tokens.unflatten(0, (len(clips), *x.shape[-2:])).permute(0, 3, 4, 1, 2).flatten(0, 1)


def project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a linear layer, or a convolution of width 1 (channels before frames), to (N, F, C)."""
    return layer(tokens) if isinstance(layer, nn.Linear) else layer(tokens.transpose(1, 2)).transpose(1, 2)


class TemporalConvolution(nn.Module):
    """Four convolutions, each over three frames; their output is added to the input."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()

        def layer(*between: nn.Module) -> nn.Sequential:
            return normed(channels, *between, nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)))

        self.conv1 = layer()
        self.conv2, self.conv3, self.conv4 = (layer(nn.Dropout(dropout)) for _ in range(3))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Transform x (N, C, h, w) over its clips of `frames` frames; the shape stays."""
        clips = x.unflatten(0, (-1, frames)).transpose(1, 2)  # B C F h w
        return (clips + self.conv4(self.conv3(self.conv2(self.conv1(clips))))).transpose(1, 2).flatten(0, 1)


class ResidualBlock(nn.Module):
    """Two convolutions over each frame with the time embedding added between them, then a temporal convolution."""

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = normed(channels, nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = normed(out_channels, nn.Dropout(dropout), convolution)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        self.temopral_conv = TemporalConvolution(out_channels, dropout)  # the published name, with its typo

    def forward(self, x: Tensor, embedding: Tensor, frames: int) -> Tensor:
        """Transform x (N, C, h, w) with its time embedding (N, size) to (N, out_channels, h, w)."""
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.temopral_conv(self.skip_connection(x) + self.out_layers(h), frames)


def downsample(channels: int) -> nn.Sequential:
    """Build the layer that halves the resolution, (N, C, h, w) to (N, C, h / 2, w / 2), by a strided convolution."""
    return nn.Sequential(OrderedDict(op=nn.Conv2d(channels, channels, 3, stride=2, padding=1)))


def upsample(channels: int) -> nn.Sequential:
    """Build the layer that repeats pixels, (N, C, h, w) to (N, C, 2 h, 2 w), and convolves."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(repeat=nn.Upsample(scale_factor=2, mode="nearest"), conv=convolution))
