"""Train the neural prior F_eta: a network that regresses the clip from its first frame. The bridge then starts there.

    python jobs/train_prior.py --recipe demo
    ray job submit --working-dir . -- python jobs/train_prior.py --recipe demo --run.storage /SHARED

Needs the cache of jobs/cache_latents.py. Its settings are prior.model and prior.train. Add --dry-run to see the plan.
Expect lines with loss, clips/s and the time left, and in STORAGE/NAME/prior: history.csv, tensorboard/, checkpoints/,
export/ (the prior that jobs/finetune.py takes) and summary.json, with the error of the prior on held-out clips beside
that of the replicated image. Type the same line again: a run that was cut off goes on from its last checkpoint, and a
finished one says that there is nothing to do.
"""

from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.train.plan import plan_training, prepare


def job(settings: Settings) -> None:
    """Train, and print the error on held-out clips."""
    run = prepare("prior", settings)
    from pipeline.train.run import run_training

    summary = run_training(run)
    errors = summary.get("held_out_error")
    if errors:
        print(f"  error on held-out clips: prior {errors['prior']:.4f}, replicated image {errors['replicated']:.4f}")


if __name__ == "__main__":
    run_job(job, lambda settings: plan_training(prepare("prior", settings)), __doc__)
