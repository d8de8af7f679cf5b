"""FRAME -> PICTURE: resize a frame so that it covers the clip's size, and crop the centre."""

import numpy as np
from PIL import Image


def crop_box(source_height: int, source_width: int, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in pixels, of the largest centred box of the shape height x width."""
    scale = min(source_height / height, source_width / width)
    left, top = (source_width - width * scale) / 2, (source_height - height * scale) / 2
    return left, top, left + width * scale, top + height * scale


def resize_and_crop(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Short side resized to fit, centre cropped: uint8 (H, W, 3) -> (height, width, 3).

    Pillow's bilinear filter, which averages when it shrinks (as torch's interpolate with antialias does).
    """
    source_height, source_width = frame.shape[:2]
    if (source_height, source_width) == (height, width):
        return np.ascontiguousarray(frame)
    box = crop_box(source_height, source_width, height, width)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box=box))
