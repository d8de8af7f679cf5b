"""The whole road as one job: latent cache -> neural prior, if needed -> fine-tuning -> samples -> metrics -> report.

    python jobs/chain.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/chain.py --recipe cluster --run.storage s3://BUCKET/runs \\
        --data.path s3://BUCKET/UCF-101

Takes the settings of all steps at once, and refuses wrong ones before the first step starts. Each step is the job of
its name in a process of its own, so that it holds no memory or GPU while another runs; a step that is done says so and
takes seconds. After a stop the same line goes on in the step where it was. The exit status is that of the step that
failed. --dry-run shows the plan of every step whose input the steps before it have made.
"""

import subprocess
import sys

from pipeline.errors import StepFailed
from pipeline.runtime.job import run_job
from pipeline.settings import ROOT, Settings


def steps(settings: Settings) -> list[str]:
    """Names of the jobs, in order."""
    prior = ["train_prior"] if settings.bridge.prior == "neural" and settings.bridge.prior_path is None else []
    return ["cache_latents", *prior, "finetune", "sample", "evaluate", "report"]


def job(settings: Settings) -> None:
    """Run the steps. Raises StepFailed at the first that fails."""
    names = steps(settings)
    for number, name in enumerate(names, 1):
        print(f"=== step {number} of {len(names)}: {name}", flush=True)
        if status := run_step(name):
            raise StepFailed(f"{name} ended with status {status}; its own message is above", status)


def plan(settings: Settings) -> str:
    """Print the plan of each step, up to the first that cannot be planned yet."""
    for name in steps(settings):
        print(f"=== {name}", flush=True)
        if run_step(name):
            return f"Plan: {name} can be planned when the steps before it have run"
    return "Plan: all of the above"


def run_step(name: str) -> int:
    """Run jobs/NAME.py with this job's arguments and return its exit status; a stop is passed on to it."""
    step = subprocess.Popen([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *sys.argv[1:]])
    try:
        return step.wait()
    finally:
        if step.poll() is None:
            step.terminate()
            step.wait()


if __name__ == "__main__":
    run_job(job, plan, __doc__)
