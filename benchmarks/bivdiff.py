"""Measure how far a video diffusion model raises the frame consistency of clips made frame by frame, for each alpha.

    python benchmarks/bivdiff.py

Two minutes on one core. The protocol was fixed before the first run:

* The video model is shipped:teacher. The image model is the same network shown one frame, so that its temporal
  attention sees nothing but that frame. Both use shipped:vae.
* 16 synthetic clips (two a class, 16 frames of 64 x 64) that the model has not seen. The image model makes each frame
  anew: it adds noise up to 0.4 of the grid to the true frame (SDEdit), independent for each frame, and goes back by
  DDIM. These clips flicker.
* Mixed Inversion and smoothing of each clip, with the class's name as prompt and alpha 0, 0.1, 0.25, 0.5, 0.75 and 1;
  20 steps each way, and no guidance, as for all of these small models.
* Frame consistency is the mean cosine of neighbouring frames in the features of shipped:detector, which sees a frame as
  a clip that stands still. It stands in for CLIP and compares with no other metric. The claim is about alpha 1, the
  paper's value for ControlNet: the mean over clips of smoothed minus flickering is above 0, with its whole 95 %
  bootstrap interval.
* Three numbers beside it show a frozen or an empty clip: consistency of the true clips, change from frame to frame
  relative to theirs (1: as lively), and PSNR to the true clip.

Writes benchmarks/results/bivdiff.json and docs/bivdiff/alpha.png.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circumstances import circumstances
from matplotlib.figure import Figure

from pipeline.bivdiff.diffusion import LatentDiffusion, Prompt, own_diffusion
from pipeline.bivdiff.mixed import invert_both, mix
from pipeline.bridge.samplers import ddim, diffusion_clean
from pipeline.bridge.schedule import sampling_indices
from pipeline.metrics.bootstrap import bootstrap
from pipeline.metrics.networks import detector_consistency
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import LoadedModel, load_for_sampling, noise_of_keys
from pipeline.sampling.measures import frame_difference, psnr
from pipeline.settings import load
from pipeline.shipped.synthetic import CLASSES, FPS, random_scene, render

ROOT = Path(__file__).parent
RESULT, PLOT = ROOT / "results" / "bivdiff.json", ROOT.parent / "docs" / "bivdiff" / "alpha.png"
SEED = 100  # of scenes; the models were trained on videos of seed 1
ALPHAS = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
STEPS, STRENGTH, FRAMES, SIDE = 20, 0.4, 16, 64
REPLICATES = 2000


def one_frame_use(loaded: LoadedModel) -> LatentDiffusion:
    """Show the model one frame at a time: its temporal blocks see that frame only."""
    model = copy.deepcopy(loaded.model)
    backbone: Any = model.backbone
    backbone.num_frames, backbone.temp_embed = 1, backbone.temp_embed[:, :1]
    return frame_by_frame(own_diffusion(replace(loaded, model=model)))


def frame_by_frame(model: LatentDiffusion) -> LatentDiffusion:
    """Turn a model of one-frame clips into one of FRAMES frames that treats each frame by itself."""

    def conditioned(prompt: Prompt, first: torch.Tensor) -> Any:
        denoise = model.conditioned(prompt, first.repeat_interleave(FRAMES, 0))
        return lambda z, t: denoise(z.flatten(0, 1)[:, None], t.repeat_interleave(FRAMES))[:, 0].unflatten(
            0, z.shape[:2]
        )

    return replace(model, conditioned=conditioned)


def true_clips(each: int) -> list[tuple[str, np.ndarray]]:
    """Render (class, uint8 (F, H, W, 3)) of `each` scenes a class that no model has seen."""
    found = []
    for number in range(each * len(CLASSES)):
        motion = CLASSES[number % len(CLASSES)]
        scene = random_scene(motion, np.random.default_rng([SEED, number]))
        found.append((motion, np.stack([render(scene, index / FPS, SIDE, SIDE) for index in range(FRAMES)])))
    return found


@torch.no_grad()
def remade(image: LatentDiffusion, z0: torch.Tensor, motion: str, noise: torch.Tensor) -> torch.Tensor:
    """Add noise of STRENGTH to every frame of z0 (1, F, C, h, w), and let the image model make each again."""
    table = image.alphas_cumprod
    indices = sampling_indices(STEPS, round(STRENGTH * len(table)))
    abar = table[indices[0]]
    z = abar.sqrt() * z0 + (1 - abar).sqrt() * noise
    clean = diffusion_clean(image.conditioned(Prompt(motion), z0[:, 0]), table, image.target)
    return ddim(clean, table, z, indices)


def variants(
    loaded: LoadedModel, image: LatentDiffusion, motion: str, frames: np.ndarray, key: str
) -> dict[str, np.ndarray]:
    """The clip after the VAE, as the image model makes it, and smoothed with every alpha."""
    video = own_diffusion(loaded)
    mean, _ = loaded.vae.encode_clips(torch.from_numpy(frames)[None])
    truth = mean * loaded.vae.scaling_factor
    flickering = remade(image, truth, motion, noise_of_keys(SEED, [key], truth.shape[1:], loaded.vae.device)(0))
    inverted = invert_both(image, video, flickering, ALPHAS, STEPS)
    latents = {"true": truth, "frames": flickering}
    for alpha in ALPHAS:
        latents[f"{alpha:g}"] = video.sample(mix(inverted, alpha), Prompt(motion), STEPS, flickering)
    return {name: loaded.vae.decode_clips(z, FRAMES)[0].numpy() for name, z in latents.items()}


def measure(clips: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Consistency, motion relative to the true clip, and PSNR to it, for every variant."""
    network = detector_consistency("shipped:detector")
    truth = clips["true"]
    return {
        name: {
            "consistency": float(network(clip[None], [""])["consistency"][0, 0]),
            "motion_ratio": frame_difference(clip) / frame_difference(truth),
            "psnr": psnr(clip, truth) if name != "true" else float("inf"),
        }
        for name, clip in clips.items()
    }


def summarise(rows: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over clips with intervals, and the gain of smoothing in consistency, clip by clip."""

    def mean(values: np.ndarray) -> dict[str, Any]:
        return dict(bootstrap(lambda index: float(values[index].mean()), len(values), REPLICATES, 0))

    found: dict[str, Any] = {}
    before = np.array([row["frames"]["consistency"] for row in rows])
    for name in rows[0]:
        columns = {key: np.array([row[name][key] for row in rows]) for key in rows[0][name]}
        found[name] = {key: mean(values) for key, values in columns.items() if np.isfinite(values).all()}
        if name not in ("true", "frames"):
            found[name]["gain"] = mean(columns["consistency"] - before)
            found[name]["clips_that_gain"] = int((columns["consistency"] > before).sum())
    return found


def plot(found: dict[str, Any]) -> Figure:
    """Consistency, motion and PSNR against alpha, with intervals; frames and true clips as lines."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    titles = {
        "consistency": "frame consistency (shipped detector)",
        "motion_ratio": "motion, against the true clip's",
        "psnr": "PSNR to the true clip, dB",
    }
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = [found[f"{alpha:g}"][key] for alpha in ALPHAS]
        low, high = ([value[end] for value in values] for end in ("low", "high"))
        axes.fill_between(ALPHAS, low, high, color="#3b6ea5", alpha=0.2, linewidth=0)
        axes.plot(ALPHAS, [value["value"] for value in values], "o-", color="#3b6ea5", label="smoothed")
        for name, colour in (("frames", "#e07b39"), ("true", "#666666")):
            if key in found[name]:
                axes.axhline(found[name][key]["value"], color=colour, linestyle="--", label=f"{name}")
        axes.set(xlabel="alpha", title=title)
        axes.grid(alpha=0.15)
    figure.axes[0].legend()
    return figure


def main() -> None:
    """Measure all clips, then write the result file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips-per-class", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="where to write frames of the first clips as PNG, to look at")
    known, rest = parser.parse_known_args()
    started = time.monotonic()
    torch.set_num_threads(1)
    settings, _ = load(["--recipe", "demo", *rest])
    exports = find_exports("shipped:teacher", settings.bridge, settings.run.folder)
    teacher = load_for_sampling(exports, settings.sample, settings.vae, settings.text)
    image = one_frame_use(teacher)
    rows, shown = [], []
    for number, (motion, frames) in enumerate(true_clips(known.clips_per_class)):
        clips = variants(teacher, image, motion, frames, str(number))
        rows.append(measure(clips))
        shown.append(np.concatenate([np.concatenate(clip[::3], 1) for clip in clips.values()]))
        print(
            f"{number:3} {motion:12}",
            {name: round(row["consistency"], 3) for name, row in rows[-1].items()},
            flush=True,
        )
    found = summarise(rows)
    result = {
        **circumstances(),
        "seconds": round(time.monotonic() - started),
        "clips": len(rows),
        "steps": STEPS,
        "strength": STRENGTH,
        "seed": SEED,
        "variants": found,
        "rows": [
            {name: {key: round(value, 5) for key, value in row[name].items() if np.isfinite(value)} for name in row}
            for row in rows
        ],
    }
    result["command"] = str(result["command"]).split(" --picture")[0]  # --picture changes no number
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    PLOT.parent.mkdir(exist_ok=True)
    plot(found).savefig(PLOT, dpi=110, metadata={"Software": None})
    if known.picture is not None:
        from PIL import Image

        for number, picture in enumerate(shown[:8]):
            Image.fromarray(picture).save(known.picture / f"{number}.png")
    for name, values in found.items():
        line = {
            key: f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
            for key, value in values.items()
            if isinstance(value, dict)
        }
        print(f"{name:7}", line)


if __name__ == "__main__":
    main()
