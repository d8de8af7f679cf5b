"""Train the detector that ships as shipped:detector: it tells synthetic motions apart, for the demo's Frechet distance.

    python jobs/make_videos.py --folder ~/framebridge/teacher-videos --videos 2400 --seed 1
    python jobs/train_detector.py --recipe demo --run.name detector --data.path ~/framebridge/teacher-videos \\
        --data.clips_per_video 2

One process, minutes on one core; DetectorTraining in pipeline/shipped/detector_training.py has the settings. Expect one
line for each epoch with the accuracy on held-out videos, and in STORAGE/NAME/detector the folder that
--evaluate.detector takes, with its classes in config.json and the measured accuracy in summary.json.
"""

import dataclasses

import torch
from safetensors.torch import save

from pipeline.runtime.job import run_job
from pipeline.runtime.progress import duration
from pipeline.schema import TEST, TRAIN
from pipeline.settings import Settings
from pipeline.shipped.clips import decode_split
from pipeline.shipped.detector_training import DetectorTraining, accuracy, train
from pipeline.storage.files import write_bytes, write_json


def job(settings: Settings) -> None:
    """Train, measure on held-out clips, and write the detector in half precision, as it ships."""
    training = DetectorTraining(seed=settings.run.seed)
    frames, labels = decode_split(settings.data, TRAIN)
    held_out_frames, truths = decode_split(settings.data, TEST)
    clips, held_out = torch.stack(frames), torch.stack(held_out_frames)
    classes = sorted(set(labels))
    target, truth = (torch.tensor([classes.index(name) for name in names]) for names in (labels, truths))
    print(f"{len(clips)} clips of {len(classes)} classes to train on, {len(held_out)} held out", flush=True)
    for epoch, module, means in train(clips, target, len(classes), training):
        right = accuracy(module.eval(), held_out, truth)
        left = duration(means["seconds"] / epoch * (training.epochs - epoch))
        print(
            f"epoch {epoch}/{training.epochs}  loss {means['loss']:.3f}  accuracy {right:.3f}  {left} left", flush=True
        )
        module.train()
    module.half().float().eval()
    folder = f"{settings.run.folder}/detector"
    right = accuracy(module, held_out, truth)
    write_bytes(f"{folder}/model.safetensors", save({k: v.half() for k, v in module.state_dict().items()}))
    write_json(f"{folder}/config.json", {"classes": classes, "frames": settings.data.frames})
    measured = {"accuracy_held_out": right, "held_out_clips": len(held_out), "clips": len(clips), **means}
    write_json(f"{folder}/summary.json", measured | dataclasses.asdict(training))
    print(f"accuracy {right:.3f} on held-out clips: {folder}")


def plan(settings: Settings) -> str:
    """Name the videos and the training's settings."""
    return f"train a detector on the clips of {settings.data.path}: {DetectorTraining(seed=settings.run.seed)}"


if __name__ == "__main__":
    run_job(job, plan, __doc__)
