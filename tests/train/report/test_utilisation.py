"""MFU: which peak is whose, and FLOPs against those counted by hand."""

import pytest
import torch
from helpers.tiny_models import tiny_model

from pipeline.data.cache.info import CacheSpec
from pipeline.models.build import build_image_to_video
from pipeline.train.plan import training_flops
from pipeline.train.report.utilisation import peak_flops, peak_of, utilisation


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("Tesla T4", None),
    ],
)
def test_a_device_has_its_own_peak(name: str, peak: float | None) -> None:
    assert peak_of(name, "bfloat16") == peak


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), "float32") is None
    assert utilisation(10.0, 2e12, 4, None) == {"tflops": 5.0}
    assert utilisation(10.0, 2e12, 4, 20e12) == {"tflops": 5.0, "mfu": 0.25}


def test_flops_are_those_of_the_matrices_counted_by_hand() -> None:
    """Two blocks of width d over 17 frames of n tokens: each token takes 12 d^2 multiplications in a block's matrices
    and 2 k d in attention over k tokens; adaLN takes 6 d^2 for each frame or position, the rest is small."""
    frames, side, d = 16, 16, 32
    with torch.device("meta"):
        network = build_image_to_video(tiny_model(), [frames, 4, side, side], 2)
    spec = CacheSpec("", {}, 1.0, [frames, 4, side, side], None, ["a", "b"])
    n, f = (side // 2) ** 2, frames + 1
    blocks = f * n * (2 * 12 * d * d + 2 * n * d + 2 * f * d) + (f + n) * 6 * d * d
    ends = f * n * (16 * d + 16 * d)  # patches in and out: 2 x 2 x 4 numbers each
    assert training_flops(network, spec) == pytest.approx(3 * 2 * (blocks + ends), rel=0.05)
    network.requires_grad_(False)
    assert training_flops(network, spec) == pytest.approx(2 * 2 * (blocks + ends), rel=0.05)
