"""The whole road as one job: latent cache -> neural prior, if bridge.prior asks for it -> fine-tuning -> samples -> metrics -> report.

    python jobs/chain.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/chain.py --recipe cluster --run.storage s3://BUCKET/runs --data.path s3://BUCKET/UCF-101

Takes the settings of all the steps at once, and finds what is wrong with them before the first one starts. Each step is
the job of its name in a process of its own, so that none holds memory or GPUs for another; one that is done says so and
takes seconds. Stopped or cut off, the same line goes on in the step where it was. Exit status: that of the step that
failed. --dry-run shows every step's plan, as far as the steps before have made what it is planned from.
"""

import subprocess
import sys

from pipeline.errors import StepFailed
from pipeline.runtime.job import run_job
from pipeline.settings import ROOT, Options, Settings


def steps(settings: Settings) -> list[str]:
    """Names of the jobs, in order."""
    prior = ["train_prior"] if settings.bridge.prior == "neural" and settings.bridge.prior_path is None else []
    return ["cache_latents", *prior, "finetune", "sample", "evaluate", "report"]


def job(settings: Settings, options: Options) -> None:
    names = steps(settings)
    for number, name in enumerate(names, 1):
        print(f"=== step {number} of {len(names)}: {name}", flush=True)
        if status := run_step(name):
            raise StepFailed(f"{name} ended with status {status}; its own message is above", status)


def plan(settings: Settings, options: Options) -> str:
    for name in steps(settings):
        print(f"=== {name}", flush=True)
        if run_step(name):
            return f"Plan: {name} can be planned when the steps before it have run"
    return "Plan: all of the above"


def run_step(name: str) -> int:
    """Run jobs/NAME.py with this job's own arguments; returns its exit status. Told to stop, the step is told, and waited for."""
    step = subprocess.Popen([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *sys.argv[1:]])
    try:
        return step.wait()
    finally:
        if step.poll() is None:
            step.terminate()
            step.wait()


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
