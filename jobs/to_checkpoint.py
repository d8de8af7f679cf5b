"""Write an export as one checkpoint file in the layout of the authors' own code, for other tools.

    python jobs/to_checkpoint.py --recipe demo
    python jobs/to_checkpoint.py --sample.model_path EXPORT

Makes EXPORT/checkpoint.pt: the same tensors under the names of the published code, in `ema` and `model`, where Latte's
code looks, or in `state_dict`, where VideoCrafter's and DynamiCrafter's look. A CogVideoX export needs no such file,
since its names are those of diffusers. Read it with torch.load(..., weights_only=True).
"""

from pipeline.models.checkpoints.exports import local_copy, save_checkpoint
from pipeline.runtime.job import run_job
from pipeline.settings import Settings
from pipeline.storage.files import write_bytes


def job(settings: Settings) -> None:
    """Write the file beside the export."""
    with local_copy(settings.model_export) as local:
        content = save_checkpoint(local)
    write_bytes(f"{settings.model_export}/checkpoint.pt", content)
    print(f"{settings.model_export}/checkpoint.pt: {len(content) / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_job(job, lambda settings: f"Plan: write {settings.model_export} as one file, checkpoint.pt there", __doc__)
