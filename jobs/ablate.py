"""The paper's comparisons on synthetic videos: SAF, priors, samplers, leakage, three seeds each, with intervals.

    python jobs/ablate.py --recipe ablation --run.storage runs
    ray job submit --working-dir . -- python jobs/ablate.py --recipe ablation --run.storage /SHARED

docs/ablation.md says what is run and what decides. Add --dry-run to see the plan. Makes its own videos and cache,
trains the models and measures them, each as a Ray task of one CPU: about an hour on one core. Expect one line for each
task with an estimate of the time left, and in STORAGE/NAME/ablation measurements.csv, clips.csv, results.json,
results.md (tables with intervals, and whether each claim is reproduced) and pictures. After a stop the same line goes
on. --page writes the page of what is measured with every seed so far.
"""

from experiments.ablation.protocol import folder_of
from experiments.ablation.run import plan_ablation, run_ablation
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def job(settings: Settings, page: bool) -> None:
    """Run the comparisons, or write the page only, and print each claim's verdict."""
    for claim in run_ablation(settings, page)["claims"]:
        print(f"  {claim['verdict']:12} {claim['claim']}")
    print(f"{folder_of(settings.run)}/results.md")


if __name__ == "__main__":
    run_job(job, plan_ablation, __doc__, {"page": ""})
