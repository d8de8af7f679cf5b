"""Estimate by arithmetic what each recipe's training takes on GPUs: the table of README.md.

    python benchmarks/costs.py

Nothing is trained or measured. The FLOP of a clip are counted on the meta device, as `--dry-run` counts them. Hours
follow from the recipe's steps, batch and GPUs, at UTILISATION of the dense peak that NVIDIA's data sheet gives an H100
SXM for the recipe's precision. docs/costs.md lists what the estimate leaves out, and how to scale it to other GPUs.

tests/test_costs.py compares README.md with this output.
"""

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import nn

from pipeline.data.cache.estimate import flops_a_frame
from pipeline.data.cache.info import CacheSpec
from pipeline.settings import Settings, load
from pipeline.train.initial import untrained
from pipeline.train.plan import training_flops
from pipeline.train.report.utilisation import peak_of
from pipeline.train.spec import Job, train_spec

GPU = "H100"
UTILISATION = 0.35  # of the dense peak

# recipe -> the recipes it is laid over; "" stands for ray_config.yaml alone
RECIPES: dict[str, list[str]] = {
    "": [],
    "ucf101-bridge": [],
    "ucf101-bridge-np": [],
    "ucf101-bridge-neural": [],
    "ucf101-bridge-replicated-np": [],
    "ucf101-vdt-i2v": [],
    "ucf101-vdt-i2v-np": [],
    "latte-saf": [],
    "latte-no-saf": [],
    "webvid-videocrafter": [],
    "webvid-videocrafter-100k": ["webvid-videocrafter"],
    "webvid-dynamicrafter": ["webvid-videocrafter"],
    "webvid-dynamicrafter-cil": ["webvid-videocrafter", "webvid-dynamicrafter"],
    "webvid-cogvideox": [],
}

# shapes of the caches: latent (F, C, h, w) at 256 x 256, text (tokens, width)
LATENTS = {"latte": [16, 4, 32, 32], "unet3d": [16, 4, 32, 32], "cogvideox": [5, 16, 32, 32]}
TEXTS = {"latte": None, "unet3d": [77, 1024], "cogvideox": [226, 4096]}
UCF101_CLASSES = 101
# the encoder of stabilityai/sd-vae-ft-ema, in diffusers' words
SD_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}


class Cost(NamedTuple):
    """Size, work and time of one training."""

    parameters: int
    flops: float  # of one clip, forward and backward, by the trained network alone
    steps: int
    clips: int  # in a step
    gpus: int
    hours: float

    def cells(self, title: str) -> list[str]:
        """One row of the table."""
        return [
            title,
            f"{self.parameters / 1e6:.0f} M",
            f"{self.flops / 1e12:.2f}",
            f"{self.steps:,} x {self.clips}",
            str(self.gpus),
            f"{self.hours:.0f}" if self.hours >= 10 else f"{self.hours:.1f}",
            f"{self.hours * self.gpus:.0f}",
        ]


def main() -> None:
    """Print the table and the line on caching."""
    print(table())
    print()
    print(caching())


def table() -> str:
    """The training costs of all recipes, as a Markdown table."""
    counted: dict[str, tuple[int, float]] = {}
    head = ["recipe", "parameters", "TFLOP a clip", "steps x clips", GPU + "s", "hours", "GPU-hours"]
    rows = [head, ["---"] * len(head)]
    for recipe, bases in RECIPES.items():
        settings = load([word for name in [*bases, recipe] if name for word in ("--recipe", name)])[0]
        title = f"`{recipe}`" if recipe else "none: `ray_config.yaml` as it stands"
        rows.append(cost("finetune", settings, counted).cells(title))
        if recipe == "ucf101-bridge-np":  # the recipes beside it take the same neural prior
            rows.append(cost("prior", settings, counted).cells(f"`{recipe}`, its neural prior"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cost(job: Job, settings: Settings, counted: dict[str, tuple[int, float]]) -> Cost:
    """The cost of one training; `counted` remembers networks that were counted before."""
    train = (settings if job == "finetune" else settings.prior).train
    parameters, flops = count(job, settings, counted)
    done = flops * (4 / 3 if train.activation_checkpointing else 1)  # the forward pass is computed twice
    if job == "finetune" and settings.uses_neural_prior and not settings.bridge.cached_prior:
        done += count("prior", settings, counted)[1] / 3  # the frozen prior's forward pass
    workers = settings.cluster.train.workers_range[1]
    peak = peak_of(GPU, train.precision)
    assert peak is not None
    seconds = train.steps * train.global_batch * done / (workers * UTILISATION * peak)
    return Cost(parameters, flops, train.steps, train.global_batch, workers, seconds / 3600)


def count(job: Job, settings: Settings, counted: dict[str, tuple[int, float]]) -> tuple[int, float]:
    """(parameters, FLOP of one clip forward and backward) of the network that the job trains."""
    key = f"{job} {(settings if job == 'finetune' else settings.prior).model}"
    if key not in counted:
        backbone = settings.model.backbone
        classes = [str(index) for index in range(UCF101_CLASSES)] if TEXTS[backbone] is None else []
        spec = CacheSpec("", {}, 1.0, LATENTS[backbone], TEXTS[backbone], classes)  # a network's shape needs no more
        with torch.device("meta"):
            model: nn.Module = untrained(train_spec(job, settings, spec))
        counted[key] = sum(parameter.numel() for parameter in model.parameters()), training_flops(model, spec)
    return counted[key]


def caching() -> str:
    """One line on encoding a clip once with Stable Diffusion's VAE."""
    stages = len(SD_VAE["block_out_channels"])  # type: ignore[arg-type]
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages, up_block_types=("UpDecoderBlock2D",) * stages, **SD_VAE
        )
    flops = 16 * flops_a_frame(vae, 256, 256)
    peak = peak_of(GPU, "bfloat16")
    assert peak is not None
    hours = 1e6 * flops / (UTILISATION * peak) / 3600
    return f"Caching: {flops / 1e12:.1f} TFLOP a clip of 16 x 256 x 256, {hours:.1f} GPU-hours for a million clips."


if __name__ == "__main__":
    main()
