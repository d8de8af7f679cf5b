"""Videos without training (BIVDiff): a task's image diffusion model makes frames, a video diffusion model smooths them.

    python jobs/bivdiff.py --recipe bivdiff-controlnet-canny --bivdiff.items LIST.csv
    ray job submit --working-dir . -- python jobs/bivdiff.py --recipe bivdiff-inpainting --run.storage /SHARED \\
        --bivdiff.items /SHARED/LIST.csv

The list has one row for each video. docs/bivdiff.md explains the columns of each task, and which models go into which
folder. Add --dry-run to see the plan. Expect a line with the time left after every row. In STORAGE/NAME/bivdiff every
clip gets KEY.generated.mp4, KEY.frames.mp4 (the image model's frames, before smoothing), KEY.source.mp4, and
KEY.control.mp4 and KEY.mask.mp4 where the task has them, and KEY.json with its metrics and seconds. grid.mp4, grid.png,
summary.json and STORAGE/NAME/report.html show all clips. A rejected row is counted, with one line that says why. Run
the job again: a finished one has nothing to do, and one that was cut off goes on and makes the same files (on CPUs:
with the same cluster.sample.num_cpus).
"""

from pipeline.bivdiff.run import plan_bivdiff, run_bivdiff
from pipeline.report.page import write_report
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def job(settings: Settings) -> None:
    """Make the clips and the report, and print the medians of the metrics."""
    summary = run_bivdiff(settings)
    for alpha, metrics in summary["metrics"].items():
        for name, values in metrics.items():
            print(f"  alpha {alpha:4} {name:40} median {values['median']:7.4f}   over {values['n']}")
    print(f"  {summary['seconds_per_clip']['median']:.1f} s a clip (median)")
    print(write_report(settings)["report"])


if __name__ == "__main__":
    run_job(job, plan_bivdiff, __doc__)
