"""Measure how the Frechet distance of docs/ablation.md grows with defects of known size.

    python benchmarks/frechet.py --recipe ablation --run.storage runs    # after jobs/ablate.py; a minute or two

Takes the ablation's held-out clips, spoils their latents more and more in one way at a time, and measures them as the
ablation measures a model's clips: through the VAE and the shipped detector, against the same clips unspoilt. A measure
of quality must grow with every defect. The result is benchmarks/results/frechet.json.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from circumstances import circumstances

from experiments.ablation.protocol import folder_of
from experiments.ablation.work import compare, held_out, look
from pipeline.data.cache.manifest import open_cache
from pipeline.metrics.frechet import feature_moments, frechet_distance
from pipeline.settings import load
from pipeline.storage.files import read_bytes

RESULT = Path(__file__).parent / "results" / "frechet.json"
SHARES = (0.25, 0.5, 0.75, 1.0)


def spoilt(clips: torch.Tensor) -> Iterator[tuple[str, float, torch.Tensor]]:
    """Yield (defect, strength, latents (N, F, C, h, w) with it)."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(clips.shape, generator=random)
    still = clips[:, :1].expand_as(clips)
    soft = torch.nn.functional.avg_pool3d(clips.transpose(1, 2), (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    soft = soft.transpose(1, 2)
    for share in SHARES:
        yield "noise, standard deviation", share, clips + share * noise
        yield "motion taken away, share", share, clips.lerp(still, share)
        yield "softened by a 3 x 3 mean, share", share, clips.lerp(soft, share)
    flicker = torch.randn((*clips.shape[:2], 1, 1, 1), generator=random)
    for share in SHARES:
        yield "flicker, standard deviation", share, clips + share * flicker
    yield "frames in another order", 1.0, clips[:, torch.randperm(clips.shape[1], generator=random)]


def main() -> None:
    """Measure every defect and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings, _ = load(parser.parse_known_args()[1])
    cache, folder = open_cache(settings.cache_path), folder_of(settings.run)
    _, latents = held_out(cache, settings.ablate.clips)
    with np.load(io.BytesIO(read_bytes(f"{folder}/truth.npz")), allow_pickle=False) as stored:
        truth = feature_moments(stored["features"])
    rows = []
    for defect, strength, clips in spoilt(latents):
        found = compare(folder, clips, latents, *look(settings.vae, settings.evaluate, clips))
        row = {
            "defect": defect,
            "strength": strength,
            "fd": round(frechet_distance(feature_moments(np.array(found["features"])), truth, "N"), 1),
            "latent_error": round(float(np.median(found["latent_error"])), 4),
            "psnr_first_frame": round(float(np.median(found["psnr_first_frame"])), 1),
            "motion_ratio": round(float(np.nanmedian(np.array(found["motion_ratio"], dtype=float))), 2),
        }
        rows.append(row)
        print(row, flush=True)
    result = {**circumstances(), "clips": len(latents), "defects": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
