"""One image to one clip in this process, and a page for a browser around it, by gradio. No Ray here."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..media import encode_mp4
from ..models.files.paths import shipped_path
from ..settings import VAE_DOWNSAMPLING
from ..storage.files import read_json
from .generate import LoadedModel, decode_latents, encode_images, generate
from .items import InputRejected, check_image, class_of, image_key, open_image


class Animated(NamedTuple):
    """A clip, as an MP4 file and as frames uint8 (F, H, W, 3)."""

    mp4: bytes
    frames: np.ndarray


def animate(loaded: LoadedModel, content: bytes, asked: str, seed: int, max_pixels: int) -> Animated:
    """Animate an image file's bytes; `asked` is a class of the model, a caption, or "".

    Raises UserError, in one line, for bytes that are no image and for a class that a model of classes does not know.
    """
    classes = loaded.exports.config["classes"]
    label = class_of(asked, classes)
    if asked and not label and loaded.text_encoder is None:
        raise UserError(f"{asked}: not a class of this model; choose one of {', '.join(classes) or 'none'}")
    _, _, height, width = loaded.exports.latent_shape
    try:
        check_image(content, max_pixels)
        image = open_image(content, height * VAE_DOWNSAMPLING, width * VAE_DOWNSAMPLING)
    except InputRejected as problem:
        raise UserError(f"the image: {problem}") from problem
    image_latent = encode_images(loaded, image[None])
    clip, _ = generate(loaded, image_latent, [label], [image_key("image", content)], seed, [asked])
    frames = decode_latents(loaded, clip)[0].numpy()
    return Animated(encode_mp4(frames, loaded.how.fps), frames)


def find_models(storage: str, model_path: str | None) -> list[str]:
    """List `model_path`, if it is given, and every RUN/finetune/export in `storage`. Raises UserError without any."""
    exports = sorted(str(path.parent) for path in Path(storage).expanduser().glob("*/finetune/export/config.json"))
    models = list(dict.fromkeys([*([model_path] if model_path else []), *exports]))
    if not models:
        raise UserError(f"{storage}: no RUN/finetune/export there; run jobs/finetune.py, or set sample.model_path")
    return models


def build_page(models: Sequence[str], load: Callable[[str], LoadedModel], max_pixels: int) -> Any:
    """Build the page, a gradio.Blocks, that animates images with any of the exports `models`.

    Raises UserError if gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise UserError('gradio is not installed; run pip install "gradio>=6"') from error
    loaded = functools.lru_cache(maxsize=1)(load)  # keep the last chosen model only

    def make(image: str | None, asked: str | None, path: str, seed: float) -> str:
        """Animate the image file with the export at `path`. Return the address of a video file."""
        if not image:
            raise gradio.Error("Drop an image first.")
        try:
            made = animate(loaded(path), Path(image).read_bytes(), asked or "", int(seed), max_pixels)
        except UserError as problem:
            raise gradio.Error(str(problem)) from problem
        with tempfile.NamedTemporaryFile(suffix=".mp4", delete=False) as file:
            file.write(made.mp4)
        return file.name

    def classes_of(path: str) -> Any:
        """Offer the classes of the export at `path`."""
        classes = read_json(f"{shipped_path(path)}/config.json")["classes"]
        return gradio.Dropdown(choices=["", *classes], value="", allow_custom_value=True)

    with gradio.Blocks(title="FrameBridge", analytics_enabled=False) as page:
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="filepath", label="image")
                path = gradio.Dropdown(models, value=models[0], label="model")
                asked = gradio.Dropdown([""], value="", label="class or caption", allow_custom_value=True)
                seed = gradio.Number(0, label="seed", precision=0)
                button = gradio.Button("Animate", variant="primary")
            clip = gradio.Video(label="clip", autoplay=True, loop=True)
        button.click(make, [image, asked, path, seed], clip)
        path.change(classes_of, path, asked)
        page.load(classes_of, path, asked)
    return page
