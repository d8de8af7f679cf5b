"""Time Latte's forward and backward pass with several formulations of attention, on the same weights and inputs.

    python benchmarks/attention.py                       # Latte-S/2 cut to 2 blocks, 256 and 512 pixels; six minutes
    python benchmarks/attention.py --size B --sides 32

`ours` is pipeline/models/latte.py as it is. `explicit` computes softmax(q k^T / sqrt(d)) v as three operations, which
is the "math" mode of the authors' code. `unfused` also writes adaLN out as x * (1 + scale) + shift, as that code does.
`prescaled` is `explicit`, but scales q, which is smaller, instead of the weights. `packed` is ours on heads made
contiguous first. `free` returns v and computes no attention: no formulation can be faster, so it bounds the gain of all
others.

Formulations take turns in every round. Times are medians of one thread's processor time, which other work on the
machine changes little. Outputs and gradients are compared too. A case is a latent of SIDE x SIDE pixels, with
(SIDE / 2)^2 tokens a frame; `attention_alone` runs the two attentions of a pair of blocks without the rest. Results go
to benchmarks/results/attention.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from circumstances import circumstances
from torch import Tensor, nn
from torch.nn import functional as F_

from pipeline.models import latte
from pipeline.models.latte import LATTE_SIZES, Attention, Latte

RESULT = Path(__file__).parent / "results" / "attention.json"
FRAMES = 17  # 16, and the image
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as three operations."""
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return weights.softmax(dim=-1) @ v


def prescaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with q scaled."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return weights.softmax(dim=-1) @ v


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fused attention on contiguous heads."""
    return F_.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())


def free(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No attention: v."""
    return v + 0 * (q + k)  # the layers before it still need their gradients


def share_of_flops(tokens: int, width: int) -> float:
    """Share of attention's two products in the FLOP of a pair of blocks, over N tokens of space and F of time.

    In a block, a token of width d takes 4 N d FLOP in attention, and 24 d^2 in the matrices of q, k, v, output and MLP.
    """
    over = tokens + FRAMES
    return over / (12 * width + over)


def forward_with(attend: Attend) -> Callable[[Attention, Tensor], Tensor]:
    """Attention.forward with another core."""

    def forward(self: Attention, x: Tensor) -> Tensor:
        *batch, tokens, size = x.shape
        qkv = self.qkv(x).view(-1, tokens, 3, self.num_heads, size // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).reshape(*batch, tokens, size))
        return out

    return forward


def written_out(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN's modulation as two operations."""
    return x * (1 + scale) + shift


FORMULATIONS: dict[str, tuple[Attend | None, bool]] = {
    "ours": (None, False),
    "explicit": (explicit, False),
    "unfused": (explicit, True),
    "prescaled": (prescaled, False),
    "packed": (packed, False),
    "free": (free, False),
}


def whole(model: Latte, side: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a forward and backward pass of the model on one clip, which gives the output and a gradient."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, FRAMES, 4, side, side, generator=random)
    t, y = torch.tensor([500.0]), torch.tensor([3])

    def step() -> tuple[Tensor, Tensor]:
        model.zero_grad(set_to_none=True)
        out = model(x, t, y)
        out.square().mean().backward()
        gradient = model.x_embedder.get_parameter("proj.weight").grad
        assert gradient is not None
        return out.detach(), gradient

    return step


def alone(model: Latte, side: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Like `whole`, for the attention over space and the attention over time of the first two blocks alone."""
    width = model.final_layer.linear.in_features
    x = torch.randn(FRAMES, (side // 2) ** 2, width, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        x.grad = None
        out = model.blocks[0].attn(x)  # type: ignore[operator]
        out = model.blocks[1].attn(out.transpose(0, 1))  # type: ignore[operator]
        out.square().mean().backward()
        assert x.grad is not None
        return out.detach(), x.grad

    return step


def measure(step: Callable[[], tuple[Tensor, Tensor]], rounds: int) -> dict[str, object]:
    """Time each formulation once a round. The first round warms up, and its output is what the others must equal."""
    seconds: dict[str, list[float]] = {name: [] for name in FORMULATIONS}
    expected: tuple[Tensor, ...] = ()
    worst = 0.0
    for number in range(rounds + 1):
        for name, (attend, unfused) in FORMULATIONS.items():
            with ExitStack() as stack:
                if attend is not None:
                    stack.enter_context(patch.object(Attention, "forward", forward_with(attend)))
                if unfused:
                    stack.enter_context(patch.object(latte, "modulate", written_out))
                begun = time.process_time()
                found = step()
                taken = time.process_time() - begun
            if number:
                seconds[name].append(taken)
            if attend is free:
                continue
            expected = expected or tuple(value.clone() for value in found)
            for one, other in zip(found, expected, strict=True):
                worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "median_cpu_seconds": {name: round(value, 3) for name, value in medians.items()},
        "ours_is_so_many_times_as_fast": {name: round(value / medians["ours"], 2) for name, value in medians.items()},
        "explicit_could_gain_at_most": round(medians["explicit"] / medians["free"], 2),
        "largest_relative_difference": worst,
    }


def main() -> None:
    """Measure every case and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(LATTE_SIZES), default="S")
    parser.add_argument("--depth", type=int, default=2, help="blocks of the network")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64], help="latent pixels along a side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: dict[str, object] = {}
    for side in options.sides:
        size = LATTE_SIZES[options.size]._replace(depth=options.depth)
        model = Latte(
            input_size=side, patch_size=2, in_channels=4, num_frames=FRAMES, num_classes=101, **size._asdict()
        )
        random = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.02, generator=random)
        cases[f"side {side}"] = {
            "tokens_a_frame": (side // 2) ** 2,
            "attention's_share_of_flops": round(share_of_flops((side // 2) ** 2, size.hidden_size), 3),
            "model": measure(whole(model, side), options.rounds),
            "attention_alone": measure(alone(model, side), options.rounds),
        }
    about = f"Latte-{options.size}/2, {options.depth} blocks, {FRAMES} frames, float32, one thread"
    result = {**circumstances(), "model": about, "rounds": options.rounds, "cases": cases}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
