"""Check a cache: every latent against its checksum, every index against its tar, every clip against the source.

    python jobs/verify_cache.py --recipe demo --run.storage STORAGE --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/verify_cache.py --recipe demo --run.storage /SHARED --data.path VIDEOS

Reads the whole cache once. Expect the rate and the time left, a table of findings, CACHE/verify.json with all of them,
and status 1 if there are any. --repair takes damaged shards back, so that jobs/cache_latents.py makes their clips
again. --without-source skips the comparison with the videos, for a machine that does not have them.
"""

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from pipeline.data.cache.info import require_spec
from pipeline.data.cache.lease import only_writer
from pipeline.data.cache.manifest import MANIFEST, open_cache, read_manifest
from pipeline.data.cache.verify import Finding, check_shards, check_source, uncommit
from pipeline.data.plan.clips import plan_table
from pipeline.errors import JobFailed
from pipeline.runtime.job import run_job
from pipeline.runtime.progress import Progress
from pipeline.settings import Settings
from pipeline.storage.files import list_files, write_json

SHOWN = 20  # findings on the screen
log = logging.getLogger("verify")


def job(settings: Settings, repair: bool, without_source: bool) -> None:
    """Check the shards, then the source, and write verify.json. Raises JobFailed if anything is wrong."""
    path = settings.cache_path
    findings, clips = read_shards(path)
    if findings and repair:
        with only_writer(path):
            taken_back = uncommit(path, findings)
        print(f"{taken_back} damaged shards taken back; run jobs/cache_latents.py to make their clips again")
    source: dict[str, pa.Table] = {}
    if not without_source and (repair or all(finding.shard for finding in findings)):
        source = check_source(read_manifest(path), plan_table(settings.data))
    report: dict[str, Any] = {"clips": clips, "damaged": [finding._asdict() for finding in findings]}
    write_json(f"{path}/verify.json", report | {name: table.to_pylist() for name, table in source.items()})
    complaints = [f"{table.num_rows} clips are of videos that are {name}" for name, table in source.items() if table]
    remedy = "their clips stay in the cache, --without-source accepts that"
    if findings:
        show(findings)
        complaints.insert(0, f"{len({finding.part for finding in findings})} shards are damaged")
        remedy = "add --repair to take damaged shards back, then run jobs/cache_latents.py"
    remedy = "run jobs/cache_latents.py now" if findings and repair else f"verify.json there names them; {remedy}"
    if complaints:
        raise JobFailed(f"{path}: {'; '.join(complaints)}; {remedy}")
    print(f"{path}: all {clips} clips are as they were written")


def read_shards(path: str) -> tuple[list[Finding], int]:
    """Check every shard and log the progress; return the findings and the number of clips."""
    findings: list[Finding] = []
    clips = size = 0
    progress = Progress(len(list_files(f"{path}/{MANIFEST}", ".parquet")), "shards", every_s=5)
    for checked in check_shards(path, require_spec(path)):
        progress.add()
        findings += checked.findings
        clips, size = clips + checked.clips, size + checked.size
        if progress.due():
            log.info(progress.line(f"{size / 2**20 / progress.seconds:.0f} MiB/s", f"{len(findings)} findings"))
    return findings, clips


def show(findings: list[Finding]) -> None:
    """Print the first findings as a table."""
    table = Table("shard", "clip", "what is wrong", title=f"{len(findings)} findings", title_justify="left")
    for finding in findings[:SHOWN]:
        table.add_row(finding.shard or finding.part.rpartition("/")[2], finding.key or "(all)", finding.problem)
    if len(findings) > SHOWN:
        table.add_row("...", "", f"{len(findings) - SHOWN} more in verify.json")
    Console().print(table)


def plan(path: str) -> str:
    """Say how much there is to read."""
    table = open_cache(path).table
    size = pc.sum(table["length"]).as_py() / 2**20
    return f"Plan: read {table.num_rows} clips, {size:.1f} MiB, in {path} and write verify.json there"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.cache_path), __doc__, {"repair": "", "without-source": ""})
