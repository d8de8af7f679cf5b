"""What is in a cache: counts by split and class, rejects by reason, statistics of the latents, a picture.

    python jobs/inspect_cache.py --recipe demo --run.storage STORAGE
    ray job submit --working-dir . -- python jobs/inspect_cache.py --recipe demo --run.storage /SHARED

Expect some tables within seconds, and CACHE/contact_sheet.png: first, middle and last frame of clips, decoded
from their latents. If the pictures look right, decoding, cropping, VAE and shards were.
"""

import io
import sys

import numpy as np
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.table import Table

from pipeline.cli import run_job
from pipeline.config import Options
from pipeline.data.cache import open_cache, print_rejects, tally
from pipeline.data.manifest import Cache
from pipeline.data.shards import read_latent
from pipeline.models.vae import load_vae
from pipeline.models.vae_files import vae_identity
from pipeline.report.contact_sheet import contact_sheet, shown_frames
from pipeline.schema import ManifestRow
from pipeline.settings import Settings
from pipeline.storage import write_bytes

STATISTICS_CLIPS, SHEET_CLIPS = 256, 24


def job(settings: Settings, options: Options) -> None:
    cache = open_cache(settings.cache_path)
    console = Console()
    print_counts(cache, console)
    if cache.rejects.num_rows:
        print_rejects(tally(cache.rejects["reason"]), f"{cache.rejects.num_rows} rejects")
    print_statistics(cache, console)
    if vae_identity(settings.vae.path)[0] != cache.info["settings"]["vae.path (hash of its weights)"]:
        console.print(f"no contact sheet: vae.path = {settings.vae.path} is not the VAE that this cache was made with")
        return
    sheet = f"{cache.path}/contact_sheet.png"
    write_bytes(sheet, draw_sheet(cache, settings))
    console.print(f"contact sheet: {sheet}", soft_wrap=True)


def plan(settings: Settings, options: Options) -> str:
    return f"Plan: read {settings.cache_path} and write contact_sheet.png there"


def print_counts(cache: Cache, console: Console) -> None:
    """Clips by class and split."""
    counts = cache.table.group_by(["label", "split"]).aggregate([("key", "count")]).to_pylist()
    splits = sorted({entry["split"] for entry in counts}, reverse=True)
    number = {(entry["label"], entry["split"]): entry["key_count"] for entry in counts}
    size = pc.sum(cache.table["length"]).as_py() / 2**20
    table = Table("class", *splits)
    for label in sorted({entry["label"] for entry in counts}):
        table.add_row(label or "(none)", *(str(number.get((label, split), 0)) for split in splits))
    totals = (sum(count for (_, its), count in number.items() if its == split) for split in splits)
    table.add_section()
    table.add_row("all", *map(str, totals))
    console.print(f"{cache.path}: {cache.table.num_rows} clips, {size:.1f} MiB of latents", soft_wrap=True)
    console.print(table)


def evenly(rows: list[ManifestRow], count: int) -> list[ManifestRow]:
    """`count` rows spread over all, or all of them."""
    return [rows[index * len(rows) // count] for index in range(count)] if len(rows) > count else rows


def print_statistics(cache: Cache, console: Console) -> None:
    """Mean and standard deviation of the scaled posterior mean; diffusion expects a deviation of about 1."""
    chosen = evenly(cache.rows, STATISTICS_CLIPS)
    # (N, 2, F, C, h, w)
    posteriors = np.stack([read_latent(cache.path, row) for row in chosen]).astype(np.float32)
    means = posteriors[:, 0] * cache.info["scaling_factor"]
    noise = np.exp(0.5 * posteriors[:, 1]).mean((0, 1, 3, 4)) * cache.info["scaling_factor"]
    table = Table("channel", "mean", "std", "std of the posterior")
    for channel in range(means.shape[2]):
        values = means[:, :, channel]
        table.add_row(str(channel), f"{values.mean():.3f}", f"{values.std():.3f}", f"{noise[channel]:.4f}")
    console.print(f"scaled latents of {len(chosen)} clips")
    console.print(table)


def draw_sheet(cache: Cache, settings: Settings) -> bytes:
    """A PNG of clips decoded from the means of their posteriors."""
    vae = load_vae(settings.vae.path, "float32")
    clips = []
    by_label = sorted(cache.rows, key=lambda row: (row["label"], row["key"]))
    for row in evenly(by_label, SHEET_CLIPS):
        mean = read_latent(cache.path, row)[0]
        shown = torch.from_numpy(mean[shown_frames(len(mean))].astype(np.float32))
        clips.append((row["caption"] or row["label"] or row["video"], vae.decode(shown * vae.scaling_factor).numpy()))
    stream = io.BytesIO()
    contact_sheet(clips).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
