"""Export a checkpoint of a fine-tuning that is still running, was stopped, or went past its best.

    python jobs/export_checkpoint.py --recipe demo
    python jobs/export_checkpoint.py --recipe demo --sample.checkpoint 200

Makes STORAGE/NAME/finetune/export-step-N from the latest checkpoint, or the one of the named step. It is like the
export at the end of a training: give it to any job as --sample.model_path. Needs the run's settings and cache, but no
cluster and no GPU.
"""

from pipeline.data.cache.info import resolve_spec
from pipeline.data.load.mix import open_training_cache
from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.train.export.from_checkpoint import choose_checkpoint, export_of_checkpoint
from pipeline.train.spec import train_spec


def job(settings: Settings) -> None:
    """Write the export and print its folder."""
    found = choose_checkpoint(f"{settings.run.folder}/finetune", settings.sample.checkpoint)
    cache = open_training_cache(
        settings.cache_path, settings.cache.mix, resolve_spec(settings.data, settings.vae, settings.text)
    )
    target = export_of_checkpoint(train_spec("finetune", settings, cache.spec), found)
    print(f"{target}; sample from it with --sample.model_path {target}")


def plan(folder: str, step: int | None) -> str:
    """Name the checkpoint."""
    found = choose_checkpoint(folder, step)
    return f"Plan: the model after {found.step} steps, from {found.address}"


if __name__ == "__main__":
    run_job(job, lambda settings: plan(f"{settings.run.folder}/finetune", settings.sample.checkpoint), __doc__)
