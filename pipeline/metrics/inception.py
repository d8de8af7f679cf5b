"""Inception score (Salimans et al. 2016; of videos: Saito et al. 2017).

It asks whether single clips are recognised, and whether every class is there.
"""

import numpy as np


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of class probabilities (N, K): mean and deviation over `splits` equal parts.

    From 1, if every clip looks alike or like nothing, to K. Parts are cut in the order given; fewer clips in a part
    lower its score. Raises ValueError for rows that are no probabilities.
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(f"{splits} splits of probabilities {probabilities.shape}: expected (N, K) with N >= splits")
    p = probabilities.astype(np.float64)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError("each row of class probabilities must be non-negative and sum to 1; give softmax outputs")
    scores = [_score(part) for part in np.array_split(p, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: np.ndarray) -> float:
    marginal = p.mean(0, keepdims=True)
    # where p is 0 the term is 0, and where the marginal is 0 so is p
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))
