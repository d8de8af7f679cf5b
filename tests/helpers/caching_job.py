"""A caching job as a process of its own, which starts in a moment: what it imports is imported once for all of them."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path


def start_job(arguments: list[str], ray_address: str, log: Path) -> ForkServerProcess:
    """jobs/cache_latents.py with these arguments, on the cluster at `ray_address`; its output is added to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipeline.data.cache.run", "pipeline.data.cache.encode", "ray.data", "helpers.caching_job"]
    )
    process = context.Process(target=_run, args=(arguments, ray_address, log), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], ray_address: str, log: Path) -> None:
    from pipeline.data.cache import lease, run
    from pipeline.runtime.job import run_job

    with open(log, "ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ["RAY_ADDRESS"] = ray_address
    lease.SETTLE_S, lease.RENEW_S = 0.2, 0.5
    sys.argv = ["cache_latents.py", *arguments]
    try:
        run_job(run.build_cache, lambda _: "", "")
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
