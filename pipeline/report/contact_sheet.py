"""LATENTS -> PICTURE: first, middle and last frame of clips under one another, with their labels."""

import numpy as np
from PIL import Image, ImageDraw

TEXT_HEIGHT, MARGIN = 14, 4
INK, PAPER = (30, 30, 30), (250, 250, 250)


def shown_frames(frames: int) -> list[int]:
    """Indices of the first, middle and last of `frames` frames."""
    return sorted({0, (frames - 1) // 2, frames - 1})


def contact_sheet(clips: list[tuple[str, np.ndarray]], columns: int = 4) -> Image.Image:
    """A sheet of (label, frames uint8 (n, H, W, 3)) clips of one size, `columns` of them side by side."""
    shown, height, width = clips[0][1].shape[:3]
    cell_width = shown * width + (shown + 1) * MARGIN
    cell_height = height + TEXT_HEIGHT + 2 * MARGIN
    columns = min(columns, len(clips))
    sheet = Image.new("RGB", (columns * cell_width, -(-len(clips) // columns) * cell_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (label, frames) in enumerate(clips):
        left, top = index % columns * cell_width + MARGIN, index // columns * cell_height + MARGIN
        while label and draw.textlength(label) > cell_width - 2 * MARGIN:
            label = label[:-1]
        draw.text((left, top - 1), label.encode("latin-1", "replace").decode("latin-1"), fill=INK)
        for number, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (left + number * (width + MARGIN), top + TEXT_HEIGHT))
    return sheet
