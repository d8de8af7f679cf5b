"""Train the detector that ships as shipped:detector: it tells the synthetic motions apart, for the demo's Frechet distance.

    python jobs/make_videos.py --folder ~/framebridge/teacher-videos --videos 2400 --seed 1
    python jobs/train_detector.py --recipe demo --run.name detector --data.path ~/framebridge/teacher-videos --data.clips_per_video 2

One process, minutes on one core; the settings are pipeline/shipped/detector_training.py's DetectorTraining. Expect a line an epoch
with the accuracy on held-out videos, and in STORAGE/NAME/detector the folder that --evaluate.detector takes, with its
classes in config.json and the measured accuracy in summary.json.
"""

import dataclasses
import sys

import torch
from safetensors.torch import save

from pipeline.data.decode.decoders import decode_clip
from pipeline.data.decode.fetch import DecodeFailure
from pipeline.data.plan.clips import plan_clips
from pipeline.errors import UserError
from pipeline.runtime.job import run_job
from pipeline.schema import TEST, TRAIN
from pipeline.settings import Options, Settings
from pipeline.shipped.detector_training import DetectorTraining, accuracy, train
from pipeline.storage.files import write_bytes, write_json


def plan(settings: Settings, options: Options) -> str:
    return f"train a detector on the clips of {settings.data.path}: {DetectorTraining(seed=settings.run.seed)}"


def main(settings: Settings, options: Options) -> None:
    training = DetectorTraining(seed=settings.run.seed)
    clips, labels = read_clips(settings, TRAIN)
    held_out, truths = read_clips(settings, TEST)
    classes = sorted(set(labels))
    target, truth = (torch.tensor([classes.index(name) for name in names]) for names in (labels, truths))
    print(f"{len(clips)} clips of {len(classes)} classes to train on, {len(held_out)} held out", flush=True)
    for epoch, module, means in train(clips, target, len(classes), training):
        right = accuracy(module.eval(), held_out, truth)
        left = means["seconds"] / epoch * (training.epochs - epoch)
        print(
            f"epoch {epoch}/{training.epochs}  loss {means['loss']:.3f}  accuracy {right:.3f}  {left:.0f} s left",
            flush=True,
        )
        module.train()
    # as they are shipped: in half precision
    module.half().float().eval()
    folder = f"{settings.run.folder}/detector"
    right = accuracy(module, held_out, truth)
    write_bytes(f"{folder}/model.safetensors", save({k: v.half() for k, v in module.state_dict().items()}))
    write_json(f"{folder}/config.json", {"classes": classes, "frames": settings.data.frames})
    measured = {"accuracy_held_out": right, "held_out_clips": len(held_out), "clips": len(clips), **means}
    write_json(f"{folder}/summary.json", measured | dataclasses.asdict(training))
    print(f"accuracy {right:.3f} on held-out clips: {folder}")


def read_clips(settings: Settings, split: str) -> tuple[torch.Tensor, list[str]]:
    """uint8 (N, F, H, W, 3) of every clip of the split, and their classes. Raises UserError."""
    frames, labels = [], []
    for clip in plan_clips(settings.data):
        if clip["split"] == split:
            try:
                frames.append(torch.from_numpy(decode_clip(clip, settings.data)[0].copy()))
                labels.append(clip["label"])
            except DecodeFailure as failure:
                print(f"{clip['video']}: {failure}", file=sys.stderr)
    if not frames:
        raise UserError(
            f"{settings.data.path}: no {split} video could be read; give a folder of videos with --data.path"
        )
    return torch.stack(frames), labels


if __name__ == "__main__":
    sys.exit(run_job(main, plan, __doc__))
