"""Serve a page where one drops an image, chooses a model and sees the clip. It answers on this machine only.

    pip install "gradio>=6"
    python jobs/web.py --recipe demo --run.storage runs

Offers every export in STORAGE/*/finetune/export (and --sample.model_path), with the sampler of the settings. Expect the
address of the page; a clip of the demo's model takes a second or two on a CPU. Ctrl-C ends it. Add --dry-run to see the
models.
"""

import functools
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.models.files.paths import shipped_path
from pipeline.runtime.job import run_job
from pipeline.sampling.animate import animate
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import LoadedModel, load_for_sampling
from pipeline.settings import Settings
from pipeline.storage.files import read_json


def find_models(settings: Settings) -> list[str]:
    """Exports to choose from. Raises UserError if there are none."""
    named = [settings.sample.model_path] if settings.sample.model_path else []
    found = sorted(
        str(path.parent) for path in Path(settings.run.storage).expanduser().glob("*/finetune/export/config.json")
    )
    models = list(dict.fromkeys([*named, *found]))
    if not models:
        raise UserError(
            f"{settings.run.storage}: no RUN/finetune/export there; train one with jobs/finetune.py, or set "
            "sample.model_path"
        )
    return models


def build_page(settings: Settings) -> Any:
    """The page, a gradio.Blocks. Raises UserError if gradio is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise UserError('gradio is not installed; run pip install "gradio>=6"') from error
    models = find_models(settings)
    device = "cuda" if settings.cluster.sample.num_gpus > 0 else "cpu"

    @functools.lru_cache(maxsize=1)  # keep the last chosen model only
    def sampler_of(path: str) -> LoadedModel:
        exports = find_exports(path, settings.bridge, settings.run.folder)
        return load_for_sampling(exports, settings.sample, settings.vae, settings.text, device)

    def make(image: str | None, asked: str | None, path: str, seed: float) -> str:
        if not image:
            raise gradio.Error("Drop an image first.")
        try:
            made = animate(sampler_of(path), Path(image).read_bytes(), asked or "", int(seed), settings.data.max_pixels)
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


def job(settings: Settings) -> None:
    """Serve the page on the loopback address only, without a tunnel: whoever reaches the page runs the model."""
    build_page(settings).launch(server_name="127.0.0.1", share=False)


def plan(settings: Settings) -> str:
    """Name the models, after a check that each can be loaded."""
    models = find_models(settings)
    for path in models:
        find_exports(path, settings.bridge, settings.run.folder)
    return "Plan: a page on 127.0.0.1 with the models\n  " + "\n  ".join(models)


if __name__ == "__main__":
    run_job(job, plan, __doc__)
