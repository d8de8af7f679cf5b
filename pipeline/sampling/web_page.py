"""IMAGE, DROPPED ON A PAGE -> CLIP: a page for a browser, by gradio."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..models.files.paths import shipped_path
from ..storage.files import read_json
from .animate import animate
from .generate import LoadedModel


def find_models(storage: str, model_path: str | None) -> list[str]:
    """`model_path`, if there is one, and every RUN/finetune/export in `storage`. Raises UserError if there are none."""
    exports = sorted(str(path.parent) for path in Path(storage).expanduser().glob("*/finetune/export/config.json"))
    models = list(dict.fromkeys([*([model_path] if model_path else []), *exports]))
    if not models:
        raise UserError(
            f"{storage}: no RUN/finetune/export there; train one with jobs/finetune.py, or set sample.model_path"
        )
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
