"""Measure sets of clips: Frechet distances, inception score, CLIPSIM and others, each with its interval."""
