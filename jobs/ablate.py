"""The paper's comparisons on synthetic videos: SAF, priors, samplers, leakage, three seeds each, with intervals.

    python jobs/ablate.py --recipe ablation --run.storage runs
    ray job submit --working-dir . -- python jobs/ablate.py --recipe ablation --run.storage /SHARED

What is run, and what decides, is written in docs/ablation.md. Add --dry-run to see the plan. Makes its own videos and cache, trains
the models and measures them, each as a Ray task of one CPU: about an hour on one core. Expect a line a task with an
estimate of the time left, and in STORAGE/NAME/ablation measurements.csv, clips.csv, results.json and results.md (tables
with intervals, and of each claim whether it is reproduced) and pictures. Cut off, the same line goes on;
--page writes the page of what is there, without what has not been measured with every seed.
"""

import sys

from experiments.ablation.protocol import folder_of
from experiments.ablation.run import plan_ablation, run_ablation
from pipeline.runtime.job import run_job
from pipeline.settings import Options, Settings


def job(settings: Settings, options: Options) -> None:
    for claim in run_ablation(settings, options.flags["page"])["claims"]:
        print(f"  {claim['verdict']:12} {claim['claim']}")
    print(f"{folder_of(settings)}/results.md")


def plan(settings: Settings, options: Options) -> str:
    return plan_ablation(settings)


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__, flags=["page"]))
