"""Train the tiny VAE that ships as shipped:vae: 8x down, 4 channels, as the Stable Diffusion VAE, for 64 x 64 frames.

    python jobs/make_videos.py --folder ~/framebridge/teacher-videos --videos 2400 --seed 1
    python jobs/train_vae.py --recipe demo --data.path ~/framebridge/teacher-videos --run.name vae

One process, about half an hour on one core; the settings are pipeline/shipped/vae_training.py's VaeTraining. Expect a line every
500 steps, and in STORAGE/NAME/vae the folder that --vae.path takes, its latents scaled to unit variance, with its
measured reconstruction PSNR on held-out videos in summary.json.
"""

import dataclasses
import sys
from pathlib import Path

import torch

from pipeline.data.decode.decoders import decode_clip
from pipeline.data.decode.fetch import DecodeFailure
from pipeline.data.plan.clips import plan_clips
from pipeline.errors import UserError
from pipeline.runtime.job import run_job
from pipeline.schema import TEST, TRAIN
from pipeline.settings import Options, Settings
from pipeline.shipped.vae_training import VaeTraining, latent_scaling, reconstruction_psnr, train
from pipeline.storage.files import write_json


def plan(settings: Settings, options: Options) -> str:
    return f"train a VAE on the frames of {settings.data.path}: {VaeTraining(seed=settings.run.seed)}"


def main(settings: Settings, options: Options) -> None:
    training = VaeTraining(seed=settings.run.seed)
    frames = {split: frames_of(settings, split) for split in (TRAIN, TEST)}
    held_out = frames[TEST][:: max(1, len(frames[TEST]) // 512)]
    print(f"{len(frames[TRAIN])} frames to train on, {len(held_out)} held out")
    for step, module, means in train(frames[TRAIN], training):
        psnr = reconstruction_psnr(module.eval(), held_out)
        left = means["seconds"] / step * (training.steps - step)
        print(
            f"step {step}/{training.steps}  error {means['pixel']:.4f}  PSNR {psnr:.2f} dB  {left / 60:.0f} min left",
            flush=True,
        )
        module.train()
    module.eval().register_to_config(scaling_factor=latent_scaling(module, held_out))
    folder = Path(settings.run.folder) / "vae"
    module.to(torch.float16).save_pretrained(folder)
    write_json(
        str(folder / "summary.json"),
        {
            "psnr_held_out": psnr,
            "frames": len(frames[TRAIN]),
            "seconds": means["seconds"],
            **dataclasses.asdict(training),
        },
    )
    print(f"PSNR {psnr:.2f} dB on held-out frames: {folder}")


def frames_of(settings: Settings, split: str) -> torch.Tensor:
    """uint8 (N, H, W, 3): every third frame of every clip of the split."""
    frames = []
    for clip in plan_clips(settings.data):
        if clip["split"] == split:
            try:
                frames.append(torch.from_numpy(decode_clip(clip, settings.data)[0][::3].copy()))
            except DecodeFailure as failure:
                print(f"{clip['video']}: {failure}", file=sys.stderr)
    if not frames:
        raise UserError(
            f"{settings.data.path}: no {split} video could be read; give a folder of videos with --data.path"
        )
    return torch.cat(frames)


if __name__ == "__main__":
    sys.exit(run_job(main, plan, __doc__))
