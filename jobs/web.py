"""Serve a page on which you drop an image, choose a model and see the clip. It answers on this machine only.

    pip install "gradio>=6"
    python jobs/web.py --recipe demo --run.storage runs

Offers every export in STORAGE/*/finetune/export (and --sample.model_path), with the sampler of the settings. Expect the
address of the page. A clip of the demo's model takes a second or two on a CPU. Ctrl-C ends it. Add --dry-run to see the
models.
"""

from pipeline.runtime.job import run_job
from pipeline.sampling.animate import build_page, find_models
from pipeline.sampling.exports import find_exports
from pipeline.sampling.generate import LoadedModel, load_for_sampling
from pipeline.settings import BridgeSettings, RunSettings, SampleSettings, Settings


def job(settings: Settings) -> None:
    """Serve the page on the loopback address only, without a tunnel: whoever reaches the page runs the model."""
    models = find_models(settings.run.storage, settings.sample.model_path)
    device = "cuda" if settings.cluster.sample.num_gpus > 0 else "cpu"

    def load(path: str) -> LoadedModel:
        exports = find_exports(path, settings.bridge, settings.run.folder)
        return load_for_sampling(exports, settings.sample, settings.vae, settings.text, device)

    build_page(models, load, settings.data.max_pixels).launch(server_name="127.0.0.1", share=False)


def plan(run: RunSettings, sample: SampleSettings, bridge: BridgeSettings) -> str:
    """Name the models, after a check that each can be loaded."""
    models = find_models(run.storage, sample.model_path)
    for path in models:
        find_exports(path, bridge, run.folder)
    return "Plan: a page on 127.0.0.1 with the models\n  " + "\n  ".join(models)


if __name__ == "__main__":
    run_job(job, lambda settings: plan(settings.run, settings.sample, settings.bridge), __doc__)
