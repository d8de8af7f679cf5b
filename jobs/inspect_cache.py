"""Show what a cache holds: counts by split and class, rejected clips by reason, statistics of the latents, a picture.

    python jobs/inspect_cache.py --recipe demo --run.storage STORAGE
    ray job submit --working-dir . -- python jobs/inspect_cache.py --recipe demo --run.storage /SHARED

Expect some tables within seconds, and CACHE/contact_sheet.png: first, middle and last frame of clips, decoded from
their latents. If the pictures look right, decoding, cropping, VAE and shards are right. --json writes the numbers to
standard output for other programs.
"""

import io
from json import dumps
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.data.cache.inspect import counts, statistics
from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.run import print_rejected
from pipeline.data.cache.shards import read_latent
from pipeline.models.files.vae import vae_identity
from pipeline.models.vae import load_vae
from pipeline.report.contact_sheet import contact_sheet, shown_frames
from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.storage.files import write_bytes

STATISTICS_CLIPS, SHEET_CLIPS = 256, 24
CLASSES = 200  # on the screen


def job(settings: Settings, json: bool) -> None:
    """Print the tables, or JSON, and draw the contact sheet where the VAE is the cache's."""
    cache = open_cache(settings.cache_path)
    found = {**counts(cache), "channels": statistics(cache, STATISTICS_CLIPS), "contact_sheet": None}
    console = Console(stderr=json)
    if vae_identity(settings.vae.path)[0] == cache.spec.vae_weights_hash:
        found["contact_sheet"] = f"{cache.path}/contact_sheet.png"
        write_bytes(found["contact_sheet"], draw_sheet(cache, settings))
    else:
        console.print(f"no contact sheet: vae.path = {settings.vae.path} is not the VAE that this cache was made with")
    if json:
        print(dumps(found, indent=1))
    else:
        show(found, console)


def plan(settings: Settings) -> str:
    """Name the cache."""
    return f"Plan: read {settings.cache_path} and write contact_sheet.png there"


def show(found: dict[str, Any], console: Console) -> None:
    """Print the numbers as tables."""
    size = f"{found['clips']} clips in {found['shards']} shards, {found['bytes'] / 2**20:.1f} MiB of latents"
    console.print(f"{found['cache']}: {size}", soft_wrap=True)
    splits = sorted({split for its in found["classes"].values() for split in its}, reverse=True)
    table = Table("class", *splits)
    for label, its in list(found["classes"].items())[:CLASSES]:
        table.add_row(label or "(none)", *(str(its.get(split, 0)) for split in splits))
    if len(found["classes"]) > CLASSES:
        table.add_row(f"{len(found['classes']) - CLASSES} more")
    table.add_section()
    table.add_row("all", *(str(sum(its.get(split, 0) for its in found["classes"].values())) for split in splits))
    console.print(table)
    if found["rejects"]:
        print_rejected(found["rejects"], f"{found['rejected']} clips rejected")
    channels = found["channels"]
    table = Table("channel", "mean", "std", "std of the posterior")
    for channel, values in enumerate(zip(channels["mean"], channels["std"], channels["posterior_std"], strict=True)):
        table.add_row(str(channel), f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[2]:.4f}")
    console.print(f"scaled latents of {channels['clips']} clips")
    console.print(table)
    if found["contact_sheet"]:
        console.print(f"contact sheet: {found['contact_sheet']}", soft_wrap=True)


def draw_sheet(cache: Cache, settings: Settings) -> bytes:
    """Draw clips of all classes, decoded from the means of their posteriors, as a PNG file."""
    vae = load_vae(settings.vae.path, "float32")
    clips = []
    for row in cache.rows.spread_by(["label", "key"], SHEET_CLIPS):
        mean = read_latent(cache.path, row)[0]
        # A temporal VAE decodes a clip from all of its frames.
        chosen = mean[shown_frames(len(mean))] if vae.temporal == 1 else mean
        frames = vae.decode_clips(torch.from_numpy(chosen.astype(np.float32))[None] * vae.scaling_factor, len(chosen))[
            0
        ]
        shown = frames if vae.temporal == 1 else frames[shown_frames(len(frames))]
        clips.append((row["caption"] or row["label"] or row["video"], shown.numpy()))
    stream = io.BytesIO()
    contact_sheet(clips).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    run_job(job, plan, __doc__, {"json": ""})
