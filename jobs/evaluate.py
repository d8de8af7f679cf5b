"""Measure generated clips against the true ones: Frechet distances, inception score, CLIPSIM, each with its interval.

    python jobs/evaluate.py --recipe demo
    python jobs/evaluate.py --recipe demo --evaluate.i3d i3d_torchscript.pt --evaluate.clip clip-vit-base-patch32
    ray job submit --working-dir . -- python jobs/evaluate.py --recipe demo --run.storage /SHARED

Reads STORAGE/NAME/samples (or --evaluate.samples). Add --dry-run to see the plan. Expect one line for each metric, and
STORAGE/NAME/evaluate/metrics.json: values, bootstrap intervals, protocol, covariance divisor, the weights' SHA-256,
number and stride of frames, and every difference from the published protocol. A metric without weights is skipped, with
a line. features/ keeps the networks' features of the clips, so the same line again takes seconds.
"""

from pipeline.metrics.evaluate import plan_evaluation, run_evaluation
from pipeline.runtime.job import run_job
from pipeline.settings import Settings


def job(settings: Settings) -> None:
    """Measure, and print each metric with its interval."""
    result = run_evaluation(settings)
    for name, found in result["metrics"].items():
        marks = "; ".join([f"{found['count']} clips", *found["departs_from_protocol"]])
        print(f"  {name:20} {found['value']:9.4f}   [{found['low']:.4f}, {found['high']:.4f}]   {marks}")
    for name, reason in result["skipped"].items():
        print(f"  {name:20} skipped: {reason}")
    print(f"{settings.run.folder}/evaluate/metrics.json")


if __name__ == "__main__":
    run_job(job, lambda settings: plan_evaluation(settings.evaluate, settings.run.folder), __doc__)
