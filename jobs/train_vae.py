"""Train the tiny VAE that ships as shipped:vae, for 64 x 64 frames: 8x down, 4 channels, like Stable Diffusion's.

    python jobs/make_videos.py --folder ~/framebridge/teacher-videos --videos 2400 --seed 1
    python jobs/train_vae.py --recipe demo --data.path ~/framebridge/teacher-videos --run.name vae

One process, about half an hour on one core. VaeTraining in pipeline/shipped/vae_training.py has the settings. Expect a
line every 500 steps, and the folder STORAGE/NAME/vae, which --vae.path takes. Its latents are scaled to unit variance;
summary.json has the reconstruction PSNR on held-out videos.
"""

import dataclasses
from pathlib import Path

import torch

from pipeline.runtime.job import run_job
from pipeline.runtime.progress import Progress
from pipeline.schema import TEST, TRAIN
from pipeline.settings import Settings
from pipeline.shipped.clips import decode_split
from pipeline.shipped.vae_training import VaeTraining, latent_scaling, reconstruction_psnr, train
from pipeline.storage.files import write_json


def job(settings: Settings) -> None:
    """Train on every third frame, measure on held-out frames, and write the VAE."""
    training = VaeTraining(seed=settings.run.seed)
    frames, others = (decode_split(settings.data, split, every=3)[0].flatten(0, 1) for split in (TRAIN, TEST))
    held_out = others[:: max(1, len(others) // 512)]
    print(f"{len(frames)} frames to train on, {len(held_out)} held out")
    progress = Progress(training.steps, "steps")
    for progress.done, module, error in train(frames, training):
        psnr = reconstruction_psnr(module.eval(), held_out)
        print(progress.line(f"error {error:.4f}", f"PSNR {psnr:.2f} dB"), flush=True)
    module.register_to_config(scaling_factor=latent_scaling(module, held_out))
    folder = Path(settings.run.folder) / "vae"
    module.to(torch.float16).save_pretrained(folder)
    measured = {"psnr_held_out": psnr, "frames": len(frames), "seconds": progress.seconds}
    write_json(str(folder / "summary.json"), measured | dataclasses.asdict(training))
    print(f"PSNR {psnr:.2f} dB on held-out frames: {folder}")


if __name__ == "__main__":
    plan = "train a VAE on the frames of {0.data.path}: {1}"
    run_job(job, lambda settings: plan.format(settings, VaeTraining(seed=settings.run.seed)), __doc__)
