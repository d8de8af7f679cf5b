"""The detector learns what only motion tells, and is loaded as it was measured."""

import numpy as np
import torch

from pipeline.shipped.detector import Detector, load_detector, shrink, to_input
from pipeline.shipped.detector_training import DetectorTraining, accuracy, augment, train
from pipeline.shipped.synthetic import FPS, random_scene, render


def sliding(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips uint8 (N, 8, 32, 32, 3) of a square going left (0) or right (1), and these labels; no frame tells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    clips = torch.full((count, 8, 32, 32, 3), 60, dtype=torch.uint8)
    for clip, label in zip(clips, labels, strict=True):
        top = int(torch.randint(0, 20, (1,), generator=generator))
        for frame in range(8):
            left = 2 * (frame if label else 7 - frame) + 4
            clip[frame, top : top + 8, left : left + 8] = 220
    return clips, labels


def test_detector_learns_which_way_a_square_goes() -> None:
    clips, labels = sliding(32, seed=0)
    held_out, truth = sliding(16, seed=1)
    epochs = list(train(clips, labels, 2, DetectorTraining(epochs=6, batch=8)))
    module, loss = epochs[-1]
    assert len(epochs) == 6 and loss < 0.5
    assert accuracy(module.eval(), held_out, truth) == 1
    assert accuracy(module, held_out.flip(1), truth) == 0  # played backwards it goes the other way


def test_shrunken_clips_give_the_same_output() -> None:
    torch.manual_seed(0)
    module = Detector(2)
    clips = sliding(2, seed=0)[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(module(to_input(clips)), module(to_input(shrink(clips))))


def test_augmented_clips_keep_their_edges_in_every_colour() -> None:
    clips = sliding(4, seed=0)[0]
    clips[..., 1] = 9
    x = augment(clips, torch.Generator().manual_seed(0))
    assert x.shape == (4, 8, 3, 32, 32)
    flat = x.amax((1, 3, 4)) == x.amin((1, 3, 4))
    assert flat.sum(1).tolist() == [1] * 4  # the channel without anything went along
    assert len(set(flat.int().argmax(1).tolist())) > 1


def test_shipped_detector_recognises_motions_of_new_clips() -> None:
    module, classes = load_detector("shipped:detector")
    random = np.random.default_rng(20)
    labels = [motion for motion in classes for _ in range(3)]
    scenes = [random_scene(motion, random) for motion in labels]
    clips = np.stack([[render(scene, (18 + frame) / FPS, 64, 64) for frame in range(16)] for scene in scenes])
    assert accuracy(module, torch.from_numpy(clips), torch.tensor([classes.index(name) for name in labels])) > 0.7
