"""The 3D U-Net of VideoCrafter1 and DynamiCrafter (Chen et al. 2023, Xing et al. 2023), with the published names.

Conditions enter in three ways: the image on extra input channels of every frame; text and each frame's image tokens
through cross-attention; the timestep and the frame stride (or rate) as embeddings. Legend: see unet3d_layers.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .latte import embedding_network, sinusoid_of_time
from .unet3d_layers import (
    GROUPS,
    ResidualBlock,
    SpatialTransformer,
    TemporalTransformer,
    downsample,
    initialise_uniform,
    normed,
    upsample,
)

Layers = Callable[[int, int, int], list[nn.Module]]  # channels in, channels out, level -> layers of a block
# the ends of branches, the conditions that a text-to-video model lacks, and the output
ZERO_AT_FIRST = re.compile(r"(out_layers\.3|conv4\.3|proj_out|to_v_ip|^fps_embedding\.2|^out\.2)\.|\.alpha$")
INIT_HEADS = 8  # heads of the temporal transformer after the first convolution


class ConditionedSequential(nn.Sequential):
    """Run layers in order and give each the conditions that it takes."""

    def forward(  # type: ignore[override]
        self, x: Tensor, embedding: Tensor, text: Tensor, image: Tensor | None, frames: int
    ) -> Tensor:
        """Transform x (B F, C, h, w); `frames` is F."""
        for layer in self:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding, frames)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, text, image)
            elif isinstance(layer, TemporalTransformer):
                x = layer(x, frames)
            else:
                x = layer(x)
        return x


class UNet3D(nn.Module):
    """Network for text-to-video diffusion; with image tokens and extra input channels, for image-to-video.

    model_channels: width at full resolution. channel_mult: multiple of that width at each level; each level halves
    the resolution. attention_levels: levels with transformers, counted from 0. head_size: divides all widths.
    text_size: width of text and image tokens. image_tokens: whether the model attends over image tokens. dropout:
    draws from PyTorch's global generator, in training only. Raises ValueError if the sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        in_channels: int = 8,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        head_size: int = 64,
        text_size: int = 1024,
        image_tokens: bool = True,
        dropout: float = 0.1,
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if model_channels % GROUPS or model_channels % head_size:
            raise ValueError(f"{model_channels=} must be a multiple of {GROUPS} (group norms) and of {head_size=}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model_channels, self.text_size, self.image_tokens = model_channels, text_size, image_tokens
        self.levels = len(channel_mult)
        self.activation_checkpointing, self.dropout = activation_checkpointing, dropout
        size, widths = 4 * model_channels, [multiple * model_channels for multiple in channel_mult]

        def transformers(channels: int) -> list[nn.Module]:
            space = SpatialTransformer(channels, head_size, text_size, image_tokens)
            return [space, TemporalTransformer(channels, head_size)]

        def layers(channels: int, out: int, level: int) -> list[nn.Module]:
            residual = ResidualBlock(channels, out, size, dropout)
            return [residual, *(transformers(out) if level in attention_levels else [])]

        with torch.random.fork_rng(devices=[]):  # PyTorch draws from the global generator when it builds a layer
            self.time_embed = embedding_network(model_channels, size)
            self.fps_embedding = embedding_network(model_channels, size)
            self.init_attn = ConditionedSequential(TemporalTransformer(model_channels, head_size, INIT_HEADS))
            first = nn.Conv2d(in_channels, model_channels, 3, padding=1)
            self.input_blocks, skips = downwards(first, model_channels, widths, num_res_blocks, layers)
            before, after = (ResidualBlock(widths[-1], widths[-1], size, dropout) for _ in range(2))
            self.middle_block = ConditionedSequential(before, *transformers(widths[-1]), after)
            self.output_blocks = upwards(skips, widths, num_res_blocks, layers)
            self.out = normed(widths[0], nn.Conv2d(widths[0], out_channels, 3, padding=1))
        self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw weights uniformly from +-1/sqrt(inputs); zero the ends of branches, added conditions and output."""
        if self.out.get_parameter("2.weight").device.type == "meta":
            return
        generator = torch.Generator(self.out.get_parameter("2.weight").device).manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                initialise_uniform(module, generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.reset_parameters()
        for name, parameter in self.named_parameters():
            if ZERO_AT_FIRST.search(name):
                parameter.zero_()

    def forward(self, x: Tensor, t: Tensor, text: Tensor, stride: Tensor, image: Tensor | None = None) -> Tensor:
        """Predict (B, F, C_out, h, w) from x (B, F, C, h, w) and t (B,) on the scale 0..999.

        text: (B, L, text_size). stride: (B,), source frames between two frames, or frames per second, whichever
        the weights were trained with. image: (B, F, tokens, text_size), if and only if the model has image_tokens.
        Computes in the dtype of the weights. Raises ValueError if the input does not fit the model.
        """
        frames = x.shape[1]
        self._check(x, text, image)
        dtype = self.out.get_parameter("2.weight").dtype
        t, stride = (sinusoid_of_time(value, self.model_channels).to(dtype) for value in (t, stride))
        embedding = (self.time_embed(t) + self.fps_embedding(stride)).repeat_interleave(frames, dim=0)
        text = text.to(dtype).repeat_interleave(frames, dim=0)
        image = None if image is None else image.to(dtype).flatten(0, 1)
        h = x.to(dtype).flatten(0, 1)
        conditions = (embedding, text, image, frames)
        skips = []
        for i, block in enumerate(self.input_blocks):
            h = self._run(block, h, *conditions)
            if i == 0:
                h = self._run(self.init_attn, h, *conditions)
            skips.append(h)
        h = self._run(self.middle_block, h, *conditions)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), *conditions)
        return self.out(h).unflatten(0, (-1, frames))

    def _run(self, block: nn.Module, *inputs: Any) -> Tensor:
        if self.activation_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=self.dropout > 0)
        return block(*inputs)

    def _check(self, x: Tensor, text: Tensor, image: Tensor | None) -> None:
        smallest = 2 ** (self.levels - 1)
        if x.shape[2] != self.in_channels or x.shape[-1] % smallest or x.shape[-2] % smallest:
            raise ValueError(
                f"the U-Net was built for {self.in_channels} channels and for latents whose sides are multiples of "
                f"{smallest}, but got {tuple(x.shape)}: x is (B, F, C, h, w)"
            )
        if text.shape[-1] != self.text_size:
            raise ValueError(f"the U-Net was built for text of width {self.text_size}, not {text.shape[-1]}")
        if (image is not None) != self.image_tokens:
            raise ValueError(
                f"image tokens are {'given' if image is not None else 'missing'}, "
                f"but the U-Net was built with image_tokens={self.image_tokens}"
            )


def downwards(
    first: nn.Module, channels: int, widths: Sequence[int], num_res_blocks: int, layers: Layers
) -> tuple[nn.ModuleList, list[int]]:
    """Build the blocks from full to lowest resolution; return them and the output channels of each."""
    blocks, given = nn.ModuleList([ConditionedSequential(first)]), [channels]
    for level, width in enumerate(widths):
        for _ in range(num_res_blocks):
            blocks.append(ConditionedSequential(*layers(given[-1], width, level)))
            given.append(width)
        if level + 1 < len(widths):
            blocks.append(ConditionedSequential(downsample(width)))
            given.append(width)
    return blocks, given


def upwards(skips: list[int], widths: Sequence[int], num_res_blocks: int, layers: Layers) -> nn.ModuleList:
    """Build the blocks from lowest to full resolution; each also takes a downward block's output, last one first."""
    blocks, channels, skips = nn.ModuleList(), widths[-1], list(skips)
    for level, width in reversed(list(enumerate(widths))):
        for i in range(num_res_blocks + 1):
            inner = layers(channels + skips.pop(), width, level)
            channels = width
            blocks.append(ConditionedSequential(*inner, *([upsample(width)] if level and i == num_res_blocks else [])))
    return blocks
