"""Show the content of a cache: clips by split and class, rejected clips by reason, statistics of latents, a picture.

    python jobs/inspect_cache.py --recipe demo --run.storage STORAGE
    ray job submit --working-dir . -- python jobs/inspect_cache.py --recipe demo --run.storage /SHARED

Expect some tables within seconds, and CACHE/contact_sheet.png: first, middle and last frame of clips, decoded from
their latents. If the pictures look right, decoding, cropping, VAE and shards are right. --json writes the numbers to
standard output for other programs.
"""

import json as json_format
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.data.cache.inspect import counts, statistics
from pipeline.data.cache.manifest import open_cache
from pipeline.data.cache.run import print_rejected
from pipeline.models.files.vae import vae_identity
from pipeline.report.contact_sheet import draw_cache
from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.storage.files import write_bytes

STATISTICS_CLIPS = 256
CLASSES = 200  # on the screen


def job(settings: Settings, json: bool) -> None:
    """Print the tables, or JSON, and draw the contact sheet where the VAE is the cache's."""
    cache = open_cache(settings.cache_path)
    found = {**counts(cache), "channels": statistics(cache, STATISTICS_CLIPS), "contact_sheet": None}
    console = Console(stderr=json)
    if vae_identity(settings.vae.path)[0] == cache.spec.vae_weights_hash:
        found["contact_sheet"] = f"{cache.path}/contact_sheet.png"
        write_bytes(found["contact_sheet"], draw_cache(cache, settings.vae.path))
    else:
        console.print(f"no contact sheet: vae.path = {settings.vae.path} is not the VAE that this cache was made with")
    if json:
        print(json_format.dumps(found, indent=1))
    else:
        show(found, console)


def show(found: dict[str, Any], console: Console) -> None:
    """Print the numbers as tables."""
    size = f"{found['clips']} clips in {found['shards']} shards, {found['bytes'] / 2**20:.1f} MiB of latents"
    console.print(f"{found['cache']}: {size}", soft_wrap=True)
    classes: dict[str, dict[str, int]] = found["classes"]
    splits = sorted({split for splits in classes.values() for split in splits}, reverse=True)
    table = Table("class", *splits)
    for label, clips in list(classes.items())[:CLASSES]:
        table.add_row(label or "(none)", *(str(clips.get(split, 0)) for split in splits))
    if len(classes) > CLASSES:
        table.add_row(f"{len(classes) - CLASSES} more")
    table.add_section()
    table.add_row("all", *(str(sum(clips.get(split, 0) for clips in classes.values())) for split in splits))
    console.print(table)
    if found["rejects"]:
        print_rejected(found["rejects"], f"{found['rejected']} rejects")
    channels = found["channels"]
    table = Table("channel", "mean", "std", "std of the posterior")
    for channel, values in enumerate(zip(channels["mean"], channels["std"], channels["posterior_std"], strict=True)):
        table.add_row(str(channel), f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[2]:.4f}")
    console.print(f"scaled latents of {channels['clips']} clips")
    console.print(table)
    if found["contact_sheet"]:
        console.print(f"contact sheet: {found['contact_sheet']}", soft_wrap=True)


if __name__ == "__main__":
    plan = "Plan: read {0} and write contact_sheet.png there"
    run_job(job, lambda settings: plan.format(settings.cache_path), __doc__, {"json": ""})
