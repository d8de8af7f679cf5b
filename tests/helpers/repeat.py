"""Run a command again and again, and append a line for each run to a result file: does anything depend on luck?

    python tests/helpers/repeat.py --times 30 --to repeats.jsonl [--busy] -- python -m pytest tests/test_media.py
    python tests/helpers/repeat.py --summary --to repeats.jsonl

Cut off, it has lost the run that it was in, and no more; typed again, it adds to the same file. With --busy a second
process keeps one core busy meanwhile. Ends with the counts, and with status 1 if any run failed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--to", type=Path, required=True, help="result file, a JSON object a line")
    parser.add_argument("--busy", action="store_true", help="with a second process that keeps a core busy")
    parser.add_argument("--summary", action="store_true", help="print the counts of the file and run nothing")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    for number in range(0 if given.summary else given.times):
        result = once(given.command, given.busy)
        with open(given.to, "a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{number + 1} of {given.times}: status {result['status']}, {result['seconds']:.0f} s", flush=True)
    return print_counts([json.loads(line) for line in given.to.read_text().splitlines()])


def once(command: list[str], busy: bool) -> dict[str, Any]:
    beside = subprocess.Popen(BUSY) if busy else None
    started, clock = time.strftime("%Y-%m-%dT%H:%M:%S"), time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    finally:
        if beside:
            beside.kill()
            beside.wait()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    result = {"started": started, "commit": commit.stdout.strip(), "command": " ".join(command), "busy": busy}
    result |= {"status": done.returncode, "seconds": round(time.monotonic() - clock, 1), "failed": failed}
    return result | ({"said": done.stdout[-4000:]} if done.returncode else {})


def print_counts(results: list[dict[str, Any]]) -> int:
    for command in dict.fromkeys(result["command"] for result in results):
        runs = [result for result in results if result["command"] == command]
        failed = Counter(name for result in runs for name in result["failed"])
        busy = sum(result["busy"] for result in runs)
        print(f"{len(runs)} runs ({busy} busy), {sum(result['status'] != 0 for result in runs)} failed: {command}")
        for name, count in failed.most_common():
            print(f"    {count} x {name}")
    return int(any(result["status"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
