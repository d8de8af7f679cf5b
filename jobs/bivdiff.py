"""Training-free videos (BIVDiff): frames by an image diffusion model of a task, smoothed in time by a video diffusion model.

    python jobs/bivdiff.py --recipe bivdiff-controlnet-canny --bivdiff.items LIST.csv
    ray job submit --working-dir . -- python jobs/bivdiff.py --recipe bivdiff-inpainting --bivdiff.items /SHARED/LIST.csv \\
        --run.storage /SHARED

The list has a row a video: docs/bivdiff.md says which columns a task takes, and which models to put into which folder.
Add --dry-run to see the plan. Expect an estimate of the time left after every row, and in STORAGE/NAME/bivdiff for every
clip KEY.generated.mp4, KEY.frames.mp4 (the image model's frames, before smoothing), KEY.source.mp4, KEY.control.mp4,
KEY.mask.mp4 as far as the task has them, and KEY.json with its metrics and seconds; grid.mp4, grid.png, summary.json, and
STORAGE/NAME/report.html. A row that cannot be made costs a line, and is counted. Run again it says that there is nothing to
do; cut off, it goes on where it stopped, to the same files (on CPUs: with the same cluster.sample.num_cpus).
"""

import sys

from pipeline.bivdiff.run import plan_bivdiff, run_bivdiff
from pipeline.report.page import write_report
from pipeline.runtime.job import run_job
from pipeline.settings import Options, Settings


def job(settings: Settings, options: Options) -> None:
    summary = run_bivdiff(settings)
    for alpha, metrics in summary["metrics"].items():
        for name, values in metrics.items():
            print(f"  alpha {alpha:4} {name:40} median {values['median']:7.4f}   over {values['n']}")
    print(f"  {summary['seconds_per_clip']['median']:.1f} s a clip (median)")
    print(write_report(settings)["report"])


def plan(settings: Settings, options: Options) -> str:
    return plan_bivdiff(settings)


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
