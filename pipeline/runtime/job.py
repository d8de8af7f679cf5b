"""What every job shares: settings, --dry-run, exit status (0 done, 2 wrong settings or input, 1 anything else).

A job that is told to stop, by `ray job stop` (SIGTERM) or Ctrl-C, exits with 143 or 130, as a process does that a signal ended.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from ..errors import JobFailed, StepFailed, UserError
from ..settings import Options, Settings, load, to_yaml
from ..storage.files import check_reachable, check_writable_place

Job = Callable[[Settings, Options], None]
Plan = Callable[[Settings, Options], str]

FORWARDING_S = 0.5  # as long as Ray itself waits for lines of workers when a process ends
STOPPED = "stopped as asked; what is committed stays, and the same line goes on from there"


def run_job(job: Job, plan: Plan, description: str | None, flags: Sequence[str] = ()) -> int:
    """Load settings from sys.argv; with --dry-run print them and `plan`, otherwise run `job`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, _stop)
    try:
        _run(job, plan, description, flags)
    except UserError as error:
        return _say(str(error), 2)
    except StepFailed as error:
        return _say(str(error), error.status)
    except JobFailed as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return _say(STOPPED, 130)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        return _say(STOPPED, 143)
    return 0


def _run(job: Job, plan: Plan, description: str | None, flags: Sequence[str]) -> None:
    settings, options = load(sys.argv[1:], description or "", flags)
    check_writable_place(settings.run.storage)
    for path in dict.fromkeys((settings.run.storage, settings.cache_path, settings.data.path)):
        check_reachable(path)
    if options.dry_run:
        print(to_yaml(settings))
        print(plan(settings, options))
    else:
        job(settings, options)


def _stop(number: int, frame: FrameType | None) -> None:
    """Unwind, so that locks are given back and Ray's workers end; asked once more, go on with that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(number)


def _say(message: str, status: int) -> int:
    """Print the job's last line, after everything that its workers printed."""
    _disconnect_from_ray()
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr, flush=True)
    return status


def _disconnect_from_ray() -> None:
    """Let Ray forward what the workers have printed so far, then leave it; nothing of Ray's is printed after that."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        time.sleep(FORWARDING_S)
        ray.shutdown()
