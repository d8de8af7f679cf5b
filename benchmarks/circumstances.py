"""Machine, date and commit, for every result file."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def circumstances() -> dict[str, str | int | float]:
    """Return the command, date, commit, machine and load of this run."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores shared with other work",
        "processor": model[1] if model else "unknown",
        "load_average": os.getloadavg()[0],
    }
