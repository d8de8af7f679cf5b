"""Generate clips with a trained model: from the cache's held-out clips, or from your own images.

    python jobs/sample.py --recipe demo
    python jobs/sample.py --recipe demo --sample.images PICTURES
    ray job submit --working-dir . -- python jobs/sample.py --recipe demo --run.storage /SHARED

PICTURES is a folder of images or a CSV file; pipeline/sampling/images.py describes both. Reads
STORAGE/NAME/finetune/export (or --sample.model_path) and the neural prior that it was trained with. Add --dry-run to
see the plan. Expect clips/s and the time left. In STORAGE/NAME/samples every item gets KEY.generated.mp4,
KEY.prior.mp4, KEY.true.mp4 (held-out clips only), KEY.image.png and KEY.json with its metrics. grid.mp4 and grid.png
show all of them. summary.json has the medians and the rejected images, each with one line that says why. Run the job
again: a finished one has nothing to do, and one that was cut off goes on.
"""

from pipeline.runtime.job import run_job
from pipeline.sampling.run import plan_sampling, run_sampling
from pipeline.settings import Settings


def job(settings: Settings) -> None:
    """Generate the clips, and print the medians of their metrics."""
    summary = run_sampling(settings)
    for name, values in summary["metrics"].items():
        if values["n"]:
            print(f"  {name:26} median {values['median']:8.3f}   over {values['n']}")
    print(f"{settings.run.folder}/samples")


if __name__ == "__main__":
    run_job(job, plan_sampling, __doc__)
