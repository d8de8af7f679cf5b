"""The whole road on one machine: videos -> cache -> neural prior -> SAF fine-tuning -> samples -> metrics -> report.

    make demo                          synthetic videos, made on the spot
    make demo VIDEOS=/some/folder      your own videos

or, with the packages installed, `python jobs/demo.py [--videos FOLDER] [--storage FOLDER] [--section.key value ...]`.
Starts a Ray cluster on this machine (or uses the one that RAY_ADDRESS names) and submits jobs to it, as a user of a
cluster does. It prints every line that it runs; each can be typed by hand. Takes some minutes on two cores. Expect
STORAGE/NAME/report.html, a page of generated videos, and STORAGE/NAME/summary.json. Run again, every step finds its
work done and says so; a step that was cut off goes on where it stopped.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from pipeline.data.plan.clips import plan_clips
from pipeline.errors import UserError
from pipeline.runtime.local import local_cluster
from pipeline.settings import ROOT, load
from pipeline.shipped.synthetic import make_dataset

# Lines that Ray's submission client, its packing and its own actors print about themselves
CHATTER = re.compile(
    r"\S+ \S+\s+(INFO|SUCC|WARNING) "
    r"(cli|packaging|working_dir|dashboard_sdk|sdk|job_manager|streaming_executor|__init__)\.py:"
    r"|.*\b(core_worker\.cc|authentication_token_setup\.py|Reporting training result)\b"
    r"|.*\((TrainController|PlacementGroupCleaner|SynchronizationActor) pid="
    r"|Running entrypoint for job|\s*$"
)
STEPS = ("cache_latents", "inspect_cache", "train_prior", "finetune", "sample", "evaluate", "report")


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--videos", metavar="FOLDER", help="your own videos; default: 240 synthetic ones")
    parser.add_argument("--storage", metavar="FOLDER", default="runs", help="where results go (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    arguments, overrides = parser.parse_known_args()
    try:
        return demo(arguments, overrides)
    except UserError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo.py: interrupted; run it again to go on from here", file=sys.stderr)
        return 130


def demo(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Make the videos, start the cluster and run every step. Raises UserError before anything starts."""
    storage = Path(arguments.storage).expanduser().resolve()
    if arguments.videos:
        videos = Path(arguments.videos).expanduser().resolve()
        if not videos.is_dir():
            raise UserError(f"{videos}: no such folder; give one that holds videos")
        # One run for each folder of videos, called after the folder.
        name = "demo-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", videos.name).strip("-.") or "videos")
        recipes = ["--recipe", "demo", "--recipe", "demo-videos"]
    else:
        videos, name, recipes = storage / "videos", "demo", ["--recipe", "demo"]
    line = [*recipes, "--run.name", name, "--run.storage", str(storage), "--data.path", str(videos), *overrides]
    settings, _ = load(line)  # refuses wrong settings before anything starts
    if arguments.videos:
        next(plan_clips(settings.data))
    commands = [["python", f"jobs/{step}.py", *line] for step in STEPS]
    if arguments.dry_run:
        for command in commands:
            print(submit_line(command))
        return 0
    started = time.monotonic()
    if not arguments.videos:
        say("videos", "240 synthetic videos with known motion, in UCF-101's layout")
        made = make_dataset(str(videos), 240, seed=0)
        print(f"  {made['made']} made, {made['videos'] - made['made']} already there: {videos}", flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "FRAMEBRIDGE_COMMIT": commit()}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with local_cluster(environment, say) as environment:
        for number, command in enumerate(commands, 1):
            say(f"step {number} of {len(commands)}", submit_line(command))
            status = run([*submit(), "--", *command], environment)
            if status:
                print(f"demo.py: {command[1]} ended with status {status}; its own message is above", file=sys.stderr)
                return status
    finish(storage / name, time.monotonic() - started)
    return 0


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a submission and show what the job prints; show Ray's own lines only if it fails."""
    left_out = []
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if CHATTER.match(line):
                left_out.append(line)
            else:
                print("  " + line, end="", flush=True)
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.terminate()
        status = process.wait()
    if status:
        print("".join(left_out[-12:]), end="", file=sys.stderr)
    return status


def submit() -> list[str]:
    """The command that submits a job."""
    return ["ray", "job", "submit", "--log-style", "record", "--working-dir", "."]


def submit_line(command: list[str]) -> str:
    """The line that a person would type."""
    return "ray job submit --working-dir . -- " + shlex.join(command)


def say(title: str, text: str) -> None:
    """Print a heading and what happens under it."""
    print(f"\n=== {title} ===\n$ {text}" if text.startswith("ray ") else f"\n=== {title} ===\n{text}", flush=True)


def finish(folder: Path, seconds: float) -> None:
    """Print the headline numbers and where to look."""
    summary = json.loads((folder / "summary.json").read_text())
    print(f"\n=== done in {seconds / 60:.1f} minutes ===")
    for key, value in summary.items():
        if isinstance(value, int | float):
            print(f"  {key}: {value:.4g}")
    print(f"  look at {folder / 'report.html'}")


def commit() -> str:
    """The commit of this checkout, for the records of the run."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
