"""LATENTS -> PICTURE: first, middle and last frame of clips, with their labels."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data.cache.manifest import Cache
from ..data.cache.shards import read_latent
from ..media import encode_png
from ..models.vae import load_vae

TEXT_HEIGHT, MARGIN = 14, 4
INK, PAPER = (30, 30, 30), (250, 250, 250)
CLIPS = 24  # on the sheet of a cache


def draw_cache(cache: Cache, vae_path: str) -> bytes:
    """Draw clips of all classes, decoded from the means of their posteriors, as a PNG file. Raises UserError."""
    vae = load_vae(vae_path, "float32")
    clips = []
    for row in cache.rows.spread(CLIPS, ["label", "key"]):
        mean = read_latent(cache.path, row)[0]
        if vae.temporal == 1:  # a temporal VAE decodes a clip from all of its frames
            mean = mean[shown_frames(len(mean))]
        scaled = torch.from_numpy(mean.astype(np.float32))[None] * vae.scaling_factor
        frames = vae.decode_clips(scaled, len(mean))[0].numpy()
        clips.append((row["caption"] or row["label"] or row["video"], frames[shown_frames(len(frames))]))
    return encode_png(np.asarray(contact_sheet(clips)))


def shown_frames(frames: int) -> list[int]:
    """Indices of the first, middle and last of `frames` frames."""
    return sorted({0, (frames - 1) // 2, frames - 1})


def contact_sheet(clips: list[tuple[str, np.ndarray]], columns: int = 4) -> Image.Image:
    """Lay (label, frames) clips of one size on a sheet, `columns` side by side; frames are uint8 (n, H, W, 3)."""
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
