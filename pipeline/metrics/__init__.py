"""Measure clips: per clip (PSNR, motion, latent error) and over many (Frechet distances, inception score)."""
