"""The whole road on one machine: videos -> cache -> neural prior -> SAF fine-tuning -> samples -> metrics -> report.

    make demo                          synthetic videos, made on the spot
    make demo VIDEOS=/some/folder      your own videos

With the packages installed, `python jobs/demo.py [--videos FOLDER] [--storage FOLDER] [--section.key value ...]` does
the same. It starts a Ray cluster on this machine, or uses the one that RAY_ADDRESS names, and submits jobs to it, as a
user of a cluster does. It prints every line that it runs; you can type each by hand. It takes some minutes on two
cores. Expect STORAGE/NAME/report.html, a page of generated videos, and STORAGE/NAME/summary.json. Run it again: every
finished step says so, and a step that was cut off goes on.
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
from pipeline.errors import StepFailed, UserError
from pipeline.report.page import git_commit, headline
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
SUBMIT = ["ray", "job", "submit", "--working-dir", "."]
VIDEOS = 240  # synthetic ones


def main() -> None:
    """Run the demo. Exits with status 2 for wrong settings or input, else with that of the step that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--videos", metavar="FOLDER", help=f"your own videos; default: {VIDEOS} synthetic ones")
    parser.add_argument("--storage", metavar="FOLDER", default="runs", help="where results go (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    arguments, overrides = parser.parse_known_args()
    try:
        demo(arguments.videos, arguments.storage, arguments.dry_run, overrides)
    except (UserError, StepFailed) as error:
        parser.exit(error.status, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; run it again to go on from here\n")


def demo(own_videos: str | None, storage: str, dry_run: bool, overrides: list[str]) -> None:
    """Make the videos, start the cluster and run every step.

    Raises UserError before anything starts, and StepFailed at the first step that fails.
    """
    folder = Path(storage).expanduser().resolve()
    videos, name, recipes = folder / "videos", "demo", ["--recipe", "demo"]
    if own_videos:
        videos = Path(own_videos).expanduser().resolve()
        if not videos.is_dir():
            raise UserError(f"{videos}: no such folder; give one that holds videos")
        # One run for each folder of videos, called after the folder.
        name = "demo-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", videos.name).strip("-.") or "videos")
        recipes += ["--recipe", "demo-videos"]
    line = [*recipes, "--run.name", name, "--run.storage", str(folder), "--data.path", str(videos), *overrides]
    settings, _ = load(line)  # refuses wrong settings before anything starts
    if own_videos:
        next(plan_clips(settings.data))
    steps = [["--", "python", f"jobs/{step}.py", *line] for step in STEPS]
    if dry_run:
        for step in steps:
            print(shlex.join([*SUBMIT, *step]))
        return
    started = time.monotonic()
    if not own_videos:
        say("videos", f"{VIDEOS} synthetic videos with known motion, in UCF-101's layout")
        made = make_dataset(str(videos), VIDEOS, seed=0)
        print(f"  {made} made, {VIDEOS - made} already there: {videos}", flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "FRAMEBRIDGE_COMMIT": git_commit()}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with local_cluster(environment, say) as environment:
        for number, step in enumerate(steps, 1):
            say(f"step {number} of {len(steps)}", shlex.join([*SUBMIT, *step]))
            if status := run([*SUBMIT, "--log-style", "record", *step], environment):
                raise StepFailed(f"{step[2]} ended with status {status}; its own message is above", status)
    print(f"\n=== done in {(time.monotonic() - started) / 60:.1f} minutes ===")
    print(headline(json.loads((folder / name / "summary.json").read_text())))
    print(f"  look at {folder / name / 'report.html'}")


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a submission and show what the job prints; show Ray's own lines only if it fails. Returns its exit status."""
    left_out = []
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if CHATTER.match(line):
                left_out.append(line)
            else:
                print("  " + line, end="", flush=True)
    except BaseException:
        process.terminate()
        raise
    finally:
        status = process.wait()
    if status:
        print("".join(left_out[-12:]), end="", file=sys.stderr)
    return status


def say(title: str, text: str) -> None:
    """Print a heading and what happens under it."""
    print(f"\n=== {title} ===\n{'$ ' if text.startswith('ray ') else ''}{text}", flush=True)


if __name__ == "__main__":
    main()
