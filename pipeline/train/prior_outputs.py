"""F_eta's outputs for clips of a cache, as jobs/cache_prior.py stores them."""

import numpy as np
import torch

from pipeline.data.manifest import Cache
from pipeline.data.rows import Rows
from pipeline.data.shards import read_latent
from pipeline.models.build import class_indices
from pipeline.models.prior import NeuralPrior

AT_ONCE = 16  # clips


@torch.inference_mode()
def outputs_of(prior: NeuralPrior, classes: list[str], cache: Cache, rows: Rows, device: str) -> np.ndarray:
    """(N, F, C, h, w) float32, from the scaled mean of each clip's first frame and its class. Raises CorruptShard."""
    parts = []
    for start in range(0, len(rows), AT_ONCE):
        some = list(rows[start : start + AT_ONCE])
        images = np.stack([read_latent(cache.path, row)[0, 0] for row in some]).astype(np.float32)
        image_latent = torch.from_numpy(images * cache.info["scaling_factor"]).to(device)
        labels = class_indices([row["label"] for row in some], classes).to(device)
        parts.append(prior(image_latent, labels).float().cpu().numpy())
    return np.concatenate(parts)
