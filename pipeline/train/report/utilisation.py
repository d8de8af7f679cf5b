"""Model FLOP/s over the peak of a GPU's data sheet: MFU (Chowdhery et al. 2022).

Model FLOPs are those of one forward and backward pass; work that is repeated or thrown away does not count.
"""

import torch

# dense peaks of the vendors' data sheets in TFLOP/s: (bfloat16 tensor cores, float32); a longer name comes first
PEAK_TFLOPS = {
    "GB200": (2500.0, 80.0),
    "B200": (2250.0, 75.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H200": (989.0, 67.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "RTX 4090": (165.2, 82.6),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "L4": (121.0, 30.3),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense peak of the device in FLOP/s for train.precision; None for a CPU or a GPU that the table lacks."""
    return peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_of(name: str, precision: str) -> float | None:
    """The same by the device's name, such as "NVIDIA A100-SXM4-80GB"."""
    words = name.replace("-", " ").split()
    for known, peaks in PEAK_TFLOPS.items():
        parts = known.split()
        if any(words[start : start + len(parts)] == parts for start in range(len(words))):
            return peaks[0 if precision == "bfloat16" else 1] * 1e12
    return None


def utilisation(samples_per_s: float, flops: float, workers: int, peak: float | None) -> dict[str, float]:
    """{"tflops": of one worker, "mfu": tflops over its device's peak, if known}; `flops` is of one clip."""
    achieved = samples_per_s * flops / workers
    return {"tflops": achieved / 1e12} | ({"mfu": achieved / peak} if peak else {})
