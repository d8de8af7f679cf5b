"""Tiny random models and a tiny cache of real videos: what sampling needs, in seconds."""

from pathlib import Path

import pytest
from helpers.tiny_models import save_model, tiny_model, tiny_settings, write_cache
from helpers.tiny_vae import save_tiny_vae

from pipeline.settings import Settings
from pipeline.shipped.synthetic import make_dataset


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_vae(tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path) -> Settings:
    """Videos, their cache, a neural prior and a SAF model, as the earlier jobs leave them."""
    folder = tmp_path_factory.mktemp("run")
    make_dataset(str(folder / "videos"), 18, seed=0, frames=20, test_share=0.5)
    settings = tiny_settings(folder, tiny_vae)
    write_cache(settings)
    save_model(settings, Path(settings.prior_export), "prior", tiny_model("none"), seed=1)
    save_model(settings, Path(settings.model_export), "image_to_video", tiny_model(), seed=2)
    return settings
