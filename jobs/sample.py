"""Generate clips with a trained model: from the cache's held-out clips, or from your own images.

    python jobs/sample.py --recipe demo
    python jobs/sample.py --recipe demo --sample.images PICTURES        # a folder, or a CSV file: see pipeline/sampling/images.py
    ray job submit --working-dir . -- python jobs/sample.py --recipe demo --run.storage /SHARED

Reads STORAGE/NAME/finetune/export (or --sample.model_path) and the neural prior it was trained with. Add --dry-run to
see the plan. Expect clips/s and an estimate of the time left, and in STORAGE/NAME/samples for every item KEY.generated.mp4,
KEY.prior.mp4, KEY.true.mp4 (of held-out clips), KEY.image.png and KEY.json with its metrics; grid.mp4 and grid.png show them
together, summary.json gives the medians; an image that cannot be used costs a line, and is counted there. Run again it says that there is nothing to do; cut off, it goes on where it stopped.
"""

import sys

from pipeline.runtime.job import run_job
from pipeline.sampling.run import plan_sampling, run_sampling
from pipeline.settings import Options, Settings


def job(settings: Settings, options: Options) -> None:
    summary = run_sampling(settings)
    for name, values in summary["metrics"].items():
        if values["n"]:
            print(f"  {name:26} median {values['median']:8.3f}   over {values['n']}")
    print(f"{settings.run.folder}/samples")


def plan(settings: Settings, options: Options) -> str:
    return plan_sampling(settings)


if __name__ == "__main__":
    sys.exit(run_job(job, plan, __doc__))
