"""Every model that BIVDiff's tasks take, tiny and random, and a video with maps and masks for them."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from helpers.tiny_diffusers import SIDE, save_controlnet, save_image_model, save_t2i_adapter, save_video_model
from helpers.video_files import picture, write_video
from PIL import Image

from pipeline.settings import Settings, load

FRAMES = 3
SIZE = (48, 64)  # of the videos, height and width


class Folders(NamedTuple):
    """Paths for the settings."""

    image: str
    pix2pix: str
    inpainting: str
    controlnet: str
    t2i_adapter: str
    video: str
    inputs: Path  # source.mp4, maps/, mask.png, narrow.png

    def of_task(self, task: str) -> dict[str, str]:
        """bivdiff.* of a task."""
        image = {"instruct_pix2pix": self.pix2pix, "inpainting": self.inpainting, "outpainting": self.inpainting}
        models = {"task": task, "image_model": image.get(task, self.image), "video_model": self.video}
        if task in ("controlnet", "t2i_adapter"):
            models["adapter"] = getattr(self, task)
        if task in image:
            models["inversion_model"] = self.image
        return models


def save_inputs(inputs: Path) -> Path:
    """A video, and maps and masks for it."""
    write_video(inputs / "source.mp4", frames=6, size=SIZE)
    (inputs / "maps").mkdir()
    for index in range(6):
        Image.fromarray(picture(index, *SIZE)).save(inputs / "maps" / f"{index:03d}.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[:, SIZE[1] // 2 :] = 255
    Image.fromarray(mask).save(inputs / "mask.png")
    Image.fromarray(mask[:, 8:]).save(inputs / "narrow.png")
    Image.fromarray(mask).resize((64, 64)).save(inputs / "mask64.png")
    return inputs


def save_folders(root: Path) -> Folders:
    """Everything, models included."""
    image = save_image_model(root / "sd")
    return Folders(
        image=image,
        pix2pix=save_image_model(root / "pix2pix", in_channels=8),
        inpainting=save_image_model(root / "inpainting", in_channels=9),
        controlnet=save_controlnet(root / "controlnet", image),
        t2i_adapter=save_t2i_adapter(root / "t2i"),
        video=save_video_model(root / "zeroscope"),
        inputs=save_inputs(root / "inputs"),
    )


ROW = {"video": "source.mp4", "prompt": "a red dog", "source_prompt": "a dog", "control": "maps", "mask": "mask.png"}


def write_list(folders: Folders, name: str, *rows: dict[str, str]) -> str:
    """A CSV file of rows, each as ROW but for what it says itself."""
    path = folders.inputs / name
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROW))
        writer.writeheader()
        writer.writerows({**ROW, **row} for row in rows)
    return str(path)


def settings_of(folders: Folders, storage: Path, task: str, items: str, **values: object) -> Settings:
    bivdiff = {"items": items, "steps": 2, "dtype": "float32", **folders.of_task(task), **values}
    lines = {"run.storage": storage, "run.name": "b", "data.frames": FRAMES, "data.stride": 1}
    lines |= {"data.height": SIDE, "data.width": SIDE, "data.decoder": "pyav"}
    lines |= {
        key if "." in key else f"bivdiff.{key}": "null" if value is None else value for key, value in bivdiff.items()
    }
    return load(["--recipe", "demo", *(f"--{key}={value}" for key, value in lines.items())])[0]
