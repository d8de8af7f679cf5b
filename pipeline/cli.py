"""What every job shares: settings, --dry-run, exit status (0 done, 2 wrong settings or input, 1 anything else)."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from pipeline.config import Options, load, to_yaml
from pipeline.settings import JobFailed, Settings, UserError
from pipeline.storage import check_reachable, check_writable_place

Job = Callable[[Settings, Options], None]
Plan = Callable[[Settings, Options], str]


def run_job(job: Job, plan: Plan, description: str | None, flags: Sequence[str] = ()) -> int:
    """Load settings from sys.argv; with --dry-run print them and `plan`, otherwise run `job`. Returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    try:
        settings, options = load(sys.argv[1:], description or "", flags)
        check_writable_place(settings.run.storage)
        for path in dict.fromkeys((settings.run.storage, settings.cache_path, settings.data.path)):
            check_reachable(path)
        if options.dry_run:
            print(to_yaml(settings))
            print(plan(settings, options))
        else:
            job(settings, options)
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2
    except JobFailed as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 1
    return 0
