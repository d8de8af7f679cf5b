"""Run a job from its command line: settings, --dry-run and the exit status.

Status 0: done; 2: wrong settings or input; 1: anything else. A job that `ray job stop` (SIGTERM) or Ctrl-C stops exits
with 143 or 130, like a process that a signal ended.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import NoReturn

from ..errors import JobFailed, UserError
from ..settings import Settings, load
from ..storage.files import check_reachable, check_writable_place

FORWARDING_S = 0.5  # Ray itself waits as long for lines of workers when a process ends
STOPPED = "stopped as asked; what is committed stays, and the same line goes on from there"


def run_job(
    job: Callable[..., object],
    plan: Callable[[Settings], str],
    description: str | None,
    flags: Mapping[str, str] | None = None,
) -> NoReturn:
    """Load settings from sys.argv and run `job(settings)`, then end the process with the exit status.

    With --dry-run, print the settings and `plan(settings)` instead. `flags`: the job's own boolean options. One that
    stands for a setting, as in {"retry-rejects": "--cache.retry_rejects=all"}, sets it; one that stands for "" is a
    keyword argument of `job`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, _stop)
    leave_ray = not _ray_is_up()  # a process that uses Ray itself may call a job
    try:
        settings, chosen = load(sys.argv[1:], description or "", flags)
        check_writable_place(settings.run.storage)
        for path in dict.fromkeys((settings.run.storage, settings.cache_path, settings.data.path)):
            check_reachable(path)
        if chosen.pop("dry_run"):
            print(settings.to_yaml())
            print(plan(settings))
        else:
            job(settings, **chosen)
    except (UserError, JobFailed) as error:
        _end(str(error), error.status, leave_ray)
    except KeyboardInterrupt:
        _end(STOPPED, 130, leave_ray)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        _end(STOPPED, 143, leave_ray)
    sys.exit(0)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwind, so that locks are released and Ray's workers end; ignore further signals meanwhile."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(number)


def _ray_is_up() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _end(message: str, status: int, leave_ray: bool) -> NoReturn:
    """Print the job's last line after everything that its workers printed, and exit with `status`."""
    if leave_ray and _ray_is_up():
        time.sleep(FORWARDING_S)  # Ray forwards what the workers have printed so far
        sys.modules["ray"].shutdown()
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
