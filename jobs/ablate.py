"""The paper's comparisons on synthetic videos: SAF, priors, samplers, leakage, with three seeds each and intervals.

    python jobs/ablate.py --recipe ablation --run.storage runs
    ray job submit --working-dir . -- python jobs/ablate.py --recipe ablation --run.storage /SHARED

docs/ablation.md has the protocol. Add --dry-run to see the plan. The job makes its own videos and cache, trains the
models and measures them, each as a Ray task of one CPU: about an hour on one core. Expect a line with the time left
after each task. STORAGE/NAME/ablation then holds measurements.csv, clips.csv, results.json, pictures and results.md,
which has tables with intervals and says whether each claim is reproduced. After a stop, type the same line to go on.
--page writes the page of everything that every seed has measured so far.
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
