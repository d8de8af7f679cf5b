"""Repeat the paper's comparisons on synthetic videos: SAF, priors, samplers, leakage, with intervals."""
