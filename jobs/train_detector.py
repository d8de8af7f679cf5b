"""Train the detector that ships as shipped:detector: it tells synthetic motions apart, for the demo's Frechet distance.

    python jobs/make_videos.py --folder ~/framebridge/teacher-videos --videos 2400 --seed 1
    python jobs/train_detector.py --recipe demo --run.name detector --data.path ~/framebridge/teacher-videos \\
        --data.clips_per_video 2

One process, minutes on one core. DetectorTraining in pipeline/shipped/detector_training.py has the settings. Expect one
line for each epoch with the accuracy on held-out videos, and the folder STORAGE/NAME/detector, which
--evaluate.detector takes, with the classes in config.json and the measured accuracy in summary.json.
"""

import dataclasses

import torch
from safetensors.torch import save

from pipeline.runtime.job import run_job
from pipeline.runtime.progress import Progress
from pipeline.schema import TEST, TRAIN
from pipeline.settings import Settings
from pipeline.shipped.clips import decode_split
from pipeline.shipped.detector_training import DetectorTraining, accuracy, train
from pipeline.storage.files import write_bytes, write_json


def job(settings: Settings) -> None:
    """Train, measure on held-out clips, and write the detector in half precision, as it ships."""
    training = DetectorTraining(seed=settings.run.seed)
    (clips, labels), (held_out, truths) = (decode_split(settings.data, split) for split in (TRAIN, TEST))
    classes = sorted(set(labels))
    target, truth = (torch.tensor([classes.index(name) for name in names]) for names in (labels, truths))
    print(f"{len(clips)} clips of {len(classes)} classes to train on, {len(held_out)} held out", flush=True)
    progress = Progress(training.epochs, "epochs")
    for module, loss in train(clips, target, len(classes), training):
        progress.add()
        right = accuracy(module.eval(), held_out, truth)
        print(progress.line(f"loss {loss:.3f}", f"accuracy {right:.3f}"), flush=True)
    right = accuracy(module.half().float(), held_out, truth)
    folder = f"{settings.run.folder}/detector"
    write_bytes(f"{folder}/model.safetensors", save({k: v.half() for k, v in module.state_dict().items()}))
    write_json(f"{folder}/config.json", {"classes": classes, "frames": settings.data.frames})
    measured = {"accuracy_held_out": right, "held_out_clips": len(held_out), "clips": len(clips)}
    measured |= {"loss": loss, "seconds": progress.seconds}
    write_json(f"{folder}/summary.json", measured | dataclasses.asdict(training))
    print(f"accuracy {right:.3f} on held-out clips: {folder}")


if __name__ == "__main__":
    plan = "train a detector on the clips of {0.data.path}: {1}"
    run_job(job, lambda settings: plan.format(settings, DetectorTraining(seed=settings.run.seed)), __doc__)
