"""Training of the shipped VAE: the optimizer does what its name says, and a few steps learn."""

import numpy as np
import torch

from pipeline.shipped.synthetic import CLASSES, random_scene, render
from pipeline.shipped.vae_training import VaeTraining, build_vae, latent_scaling, reconstruction_psnr, train


def test_a_few_steps_learn_and_the_same_seed_gives_the_same_weights() -> None:
    scenes = [random_scene(motion, np.random.default_rng(i)) for i, motion in enumerate(CLASSES)]
    frames = torch.from_numpy(np.stack([render(scene, 0.3, 32, 32) for scene in scenes]))
    training = VaeTraining(channels=(8, 8, 8, 8), steps=30)
    torch.manual_seed(0)
    before = reconstruction_psnr(build_vae(training).eval(), frames)
    [(step, module, error)] = list(train(frames, training))
    [(_, again, _)] = list(train(frames, training))
    assert step == 30
    assert 0 < error < 2
    assert reconstruction_psnr(module.eval(), frames) > before + 1
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    assert 0 < latent_scaling(module, frames) < 1e3
