"""Train the image-to-video model from the latent cache: the bridge, with or without SAF, or its diffusion counterpart.

    python jobs/finetune.py --recipe demo
    ray job submit --working-dir . -- python jobs/finetune.py --recipe demo --run.storage /SHARED

Needs the cache of jobs/cache_latents.py and, with bridge.prior neural, the export of jobs/train_prior.py. Add
--dry-run to see the plan: parameters, tokens and FLOP a clip, epochs, sizes. Expect lines with loss, clips/s and the
time left, and in STORAGE/NAME/finetune: history.csv, tensorboard/, checkpoints/, export/ (model.safetensors,
config.json) and summary.json. Type the same line again: a run that was cut off goes on from its last checkpoint, and a
finished one says that there is nothing to do.
"""

from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.train.plan import plan_training, prepare


def job(settings: Settings) -> None:
    """Train, and sample while training where the settings ask for it."""
    run = prepare("finetune", settings)
    from pipeline.sampling.while_training import sampled_while_training
    from pipeline.train.run import run_training

    with sampled_while_training(run):
        run_training(run)


if __name__ == "__main__":
    run_job(job, lambda settings: plan_training(prepare("finetune", settings)), __doc__)
