"""Measure how few steps each sampler needs on a trained bridge: the spectrum of its clips against many steps.

    python benchmarks/samplers.py --recipe demo --run.storage runs     # after `make demo`; 15 minutes on two cores

Takes the run's export, its neural prior and its cache, as jobs/sample.py does. Every sampler samples `--clips` of the
cache's clips, held-out ones first, with every number of network evaluations. Too few steps show as missing energy
(blur, too little motion) or as too much (noise). So the image is subtracted from each clip, and the mean energy of the
rest is measured in 4 temporal by 4 spatial frequency bands. `decibels` is the root mean square over the bands of the
ratio to the reference, first-order SDE with `--reference` steps. `floor` is the same between two runs of the reference,
`decibels_to_truth` the same to the true clips. Results go to benchmarks/results/samplers.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from circumstances import circumstances

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.shards import read_latent
from pipeline.models.prior import replicate
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import LoadedModel, generate, load_for_sampling
from pipeline.schema import TEST, TRAIN
from pipeline.settings import load

RESULT = Path(__file__).parent / "results" / "samplers.json"
EVALUATIONS = (10, 20)
BANDS = 4
BATCH = 16
# name: settings, and evaluations a step
SAMPLERS: dict[str, tuple[dict[str, Any], int]] = {
    "sde_first_order": ({"sampler": "sde_first_order"}, 1),
    "sde_first_order, quadratic": ({"sampler": "sde_first_order", "spacing": "quadratic"}, 1),
    "ode_second_order": ({"sampler": "ode_second_order"}, 2),
    "stochastic_heun, quadratic": ({"sampler": "stochastic_heun", "spacing": "quadratic"}, 3),
    "dbim eta 0": ({"sampler": "dbim"}, 1),
    "dbim order 2": ({"sampler": "dbim", "order": 2}, 1),
    "dbim order 3": ({"sampler": "dbim", "order": 3}, 1),
    "dbim order 2, quadratic": ({"sampler": "dbim", "order": 2, "spacing": "quadratic"}, 1),
}


def spectrum(clips: torch.Tensor) -> torch.Tensor:
    """Mean energy of (N, F, C, h, w) in BANDS temporal by BANDS spatial frequency bands: decibels, (BANDS^2,)."""
    _, frames, _, height, width = clips.shape
    energy = torch.fft.fftn(clips.double(), dim=(1, 3, 4)).abs().square().mean((0, 2))
    time = torch.fft.fftfreq(frames).abs()[:, None, None]
    space = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None]).clamp(max=0.4999)
    band = (time * 2 * BANDS).long().clamp(max=BANDS - 1) * BANDS + (space * 2 * BANDS).long()
    total = torch.zeros(BANDS**2, dtype=torch.float64).index_add(0, band.flatten(), energy.flatten())
    return 10 * (total / band.flatten().bincount(minlength=BANDS**2)).log10()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Ratio of the energies of two sets of clips in decibels, root mean square over the bands."""
    return round(float((spectrum(one) - spectrum(other)).square().mean().sqrt()), 3)


def clips_of(cache: Cache, count: int) -> tuple[torch.Tensor, list[str], list[str]]:
    """Read scaled latents (N, F, C, h, w), class names and keys of the first clips."""
    rows = [*cache.select(TEST), *cache.select(TRAIN)][:count]
    latents = torch.stack([torch.from_numpy(read_latent(cache.path, row)[0]).float() for row in rows])
    return latents * cache.spec.scaling_factor, [row["label"] for row in rows], [row["key"] for row in rows]


def sample(
    loaded: LoadedModel, data: tuple[torch.Tensor, list[str], list[str]], seed: int, how: dict[str, Any]
) -> torch.Tensor:
    """Sample a clip for each image and subtract the image: (N, F, C, h, w)."""
    latents, labels, keys = data
    chosen = LoadedModel(**{**vars(loaded), "how": loaded.how.model_copy(update={"order": 1, "eta": 0.0, **how})})
    made = []
    for start in range(0, len(keys), BATCH):
        part = slice(start, start + BATCH)
        made.append(generate(chosen, latents[part, 0], labels[part], keys[part], seed).clip)
    return remainder(torch.cat(made), latents)


def remainder(clips: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Subtract from each clip its image."""
    return clips - replicate(latents[:, 0], clips.shape[1])


def main() -> None:
    """Measure every sampler and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--reference", type=int, default=100, help="steps of the reference sampler")
    known, rest = parser.parse_known_args()
    settings, _ = load(rest)
    loaded = load_for_sampling(
        find_exports(settings.model_export, settings.bridge, settings.run.folder),
        settings.sample,
        settings.vae,
        settings.text,
    )
    data = clips_of(open_cache(settings.cache_path), known.clips)
    truth = remainder(data[0], data[0])
    reference, again = (
        sample(loaded, data, seed, {"sampler": "sde_first_order", "steps": known.reference}) for seed in (1000, 2000)
    )
    rows: dict[str, dict[str, Any]] = {}
    for name, (how, each) in SAMPLERS.items():
        for evaluations in EVALUATIONS:
            steps = max((evaluations - 1) // each + 1, 2)
            begun = time.perf_counter()
            found = sample(loaded, data, 0, {"spacing": "uniform", **how, "steps": steps})
            row = {
                "evaluations": (steps - 1) * each + 1,
                "decibels": apart(found, reference),
                "decibels_to_truth": apart(found, truth),
                "seconds": round(time.perf_counter() - begun, 1),
            }
            rows.setdefault(name, {})[str(evaluations)] = row
            print(f"{name:28} {row}", flush=True)
    config = loaded.exports.config
    result = {
        **circumstances(),
        "model": {name: config[name] for name in ("model", "bridge", "steps", "latent_shape")},
        "clips": len(truth),
        "reference_steps": known.reference,
        "floor": apart(reference, again),
        "reference_to_truth": apart(reference, truth),
        "samplers": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"floor {result['floor']}, reference to truth {result['reference_to_truth']}; {RESULT}")


if __name__ == "__main__":
    main()
