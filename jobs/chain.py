"""The whole road as one job: latent cache -> neural prior, if needed -> fine-tuning -> samples -> metrics -> report.

    python jobs/chain.py --recipe demo --data.path VIDEOS
    ray job submit --working-dir . -- python jobs/chain.py --recipe cluster --run.storage s3://BUCKET/runs \\
        --data.path s3://BUCKET/UCF-101

Takes the settings of all steps at once, and refuses wrong ones before the first step starts. Each step is the job of
its name in a process of its own, so that it holds no memory or GPU while another runs. A finished step says so within
seconds. After a stop, type the same line to go on in the step that was cut off. The exit status is that of the step
that failed. --dry-run shows the plan of every step whose input exists.
"""

import subprocess
import sys
from collections.abc import Iterator

from pipeline.errors import StepFailed
from pipeline.runtime.job import run_job
from pipeline.settings import ROOT, BridgeSettings, Settings


def run_steps(bridge: BridgeSettings) -> Iterator[tuple[str, int]]:
    """Run the jobs with this job's arguments, up to the first that fails; yield each name and exit status."""
    prior = ["train_prior"] if bridge.prior == "neural" and bridge.prior_path is None else []
    names = ["cache_latents", *prior, "finetune", "sample", "evaluate", "report"]
    for number, name in enumerate(names, 1):
        print(f"=== step {number} of {len(names)}: {name}", flush=True)
        step = subprocess.Popen([sys.executable, str(ROOT / "jobs" / f"{name}.py"), *sys.argv[1:]])
        try:
            yield name, step.wait()
        finally:  # a stop of this job is passed on
            if step.poll() is None:
                step.terminate()
                step.wait()
        if step.returncode:
            return


def job(settings: Settings) -> None:
    """Run the steps. Raises StepFailed at the first that fails."""
    for name, status in run_steps(settings.bridge):
        if status:
            raise StepFailed(f"{name} ended with status {status}; its own message is above", status)


def plan(bridge: BridgeSettings) -> str:
    """Print the plan of each step, up to the first that cannot be planned yet."""
    failed = next((name for name, status in run_steps(bridge) if status), None)
    return f"Plan: {failed} can be planned when the steps before it have run" if failed else "Plan: all of the above"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.bridge), __doc__)
