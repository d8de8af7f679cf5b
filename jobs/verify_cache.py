"""Is the cache whole? Every latent against its checksum, every index against its tar, every clip against the source.

    python jobs/verify_cache.py --recipe demo --run.storage STORAGE --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/verify_cache.py --recipe demo --run.storage /SHARED --data.path VIDEOS

Reads the whole cache once; expect the rate and what is left, a table of what is wrong, CACHE/verify.json with all of
it, and status 1 if there is anything. --repair takes damaged shards back, so that jobs/cache_latents.py makes their
clips again. --without-source leaves the source out, where it is no longer at hand.
"""

import logging
import sys
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline.data.cache.info import require_info
from pipeline.data.cache.lease import only_writer
from pipeline.data.cache.manifest import MANIFEST, open_cache, read_manifest
from pipeline.data.cache.verify import Finding, check_shards, check_source, uncommit
from pipeline.data.plan.clips import plan_table
from pipeline.errors import JobFailed
from pipeline.runtime.job import run_job
from pipeline.settings import Options, Settings
from pipeline.storage.files import list_files, write_json

SHOWN = 20  # findings on the screen
SAY_S = 5.0
log = logging.getLogger("verify")


def job(settings: Settings, options: Options) -> None:
    path, repair = settings.cache_path, options.flags["repair"]
    findings, clips = read_shards(path)
    if findings and repair:
        with only_writer(path):
            print(
                f"{uncommit(path, findings)} damaged shards taken back; run jobs/cache_latents.py to make their clips again"
            )
    source: dict[str, pa.Table] = {}
    if not options.flags["without-source"] and (repair or all(finding.shard for finding in findings)):
        source = check_source(read_manifest(path), plan_table(settings.data))
    report: dict[str, Any] = {"clips": clips, "damaged": [finding._asdict() for finding in findings]}
    write_json(f"{path}/verify.json", report | {name: table.to_pylist() for name, table in source.items()})
    show(findings)
    complaints = [f"{len({finding.part for finding in findings})} shards are damaged"] if findings else []
    complaints += [f"{table.num_rows} clips are of videos that are {name}" for name, table in source.items() if table]
    if complaints:
        raise JobFailed(f"{path}: {'; '.join(complaints)}; {advice(bool(findings), repair)}")
    print(f"{path}: all {clips} clips are as they were written")


def plan(settings: Settings, options: Options) -> str:
    table = open_cache(settings.cache_path).table
    size = pc.sum(table["length"]).as_py() / 2**20
    return f"Plan: read {table.num_rows} clips, {size:.1f} MiB, in {settings.cache_path} and write verify.json there"


def read_shards(path: str) -> tuple[list[Finding], int]:
    """(what is wrong with the shards, clips in them); says now and then how far it is."""
    started, said = time.monotonic(), 0.0
    findings: list[Finding] = []
    clips = size = 0
    shards = len(list_files(f"{path}/{MANIFEST}", ".parquet"))
    for done, checked in enumerate(check_shards(path, require_info(path)), 1):
        findings += checked.findings
        clips, size = clips + checked.clips, size + checked.size
        spent = time.monotonic() - started
        if spent - said >= SAY_S:
            rate, left = size / 2**20 / spent, spent / done * (shards - done)
            log.info("%d of %d shards, %.0f MiB/s, %d findings, %.0f s to go", done, shards, rate, len(findings), left)
            said = spent
    return findings, clips


def show(findings: list[Finding]) -> None:
    if not findings:
        return
    table = Table("shard", "clip", "what is wrong", title=f"{len(findings)} findings", title_justify="left")
    for finding in findings[:SHOWN]:
        table.add_row(finding.shard or finding.part.rpartition("/")[2], finding.key or "(all)", finding.problem)
    if len(findings) > SHOWN:
        table.add_row("...", "", f"{len(findings) - SHOWN} more in verify.json")
    Console().print(table)


def advice(damaged: bool, repair: bool) -> str:
    """What to do about it."""
    if damaged and not repair:
        return "verify.json there names them; add --repair to take damaged shards back, then run jobs/cache_latents.py"
    if damaged:
        return "run jobs/cache_latents.py now"
    return "verify.json there names them; their clips stay in the cache, --without-source accepts that"


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__, flags=["repair", "without-source"]))
