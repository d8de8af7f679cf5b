"""Jobs that read a whole cache on a real Ray cluster give what one machine computes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.manifest import Cache, open_cache
from pipeline.data.cache.moments import load_moments
from pipeline.data.cache.prior_outputs import missing_shards, outputs_of, prior_reader
from pipeline.data.cache.shards import read_latent
from pipeline.models.build import build_prior
from pipeline.models.checkpoints.exports import save_export
from pipeline.models.checkpoints.weights_hash import weights_hash
from pipeline.models.files.paths import shipped_path
from pipeline.schema import TRAIN
from pipeline.settings import ROOT, Settings
from pipeline.train.export.write import export_config
from pipeline.train.initial import load_frozen_prior
from pipeline.train.plan import prepare
from pipeline.train.spec import train_spec

pytestmark = pytest.mark.ray
ARGUMENTS = ("--bridge.prior=neural", "--bridge.cached_prior=true", "--cluster.encode.num_cpus=0.5")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    settings = tiny_settings(folder, *ARGUMENTS)
    cache = write_cache(settings, clips=150)  # of moments, three tasks' worth
    prior = build_prior(settings.prior.model, cache.spec.latent_shape, len(cache.spec.classes))
    prior.backbone.initialise(0)
    config = export_config(train_spec("prior", settings, cache.spec))
    save_export(settings.prior_export, prior.backbone.state_dict(), config)
    return folder


def run_job(name: str, storage: Path) -> tuple[Settings, Cache]:
    """The job as a user starts it, connected to the session's cluster."""
    import ray

    settings = tiny_settings(storage, *ARGUMENTS)
    config = storage / "settings.yaml"
    config.write_text(settings.to_yaml())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-W", "ignore", f"jobs/{name}.py", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return settings, open_cache(settings.cache_path)


def test_moments_of_the_cluster_equal_numpys(ray_cluster: None, storage: Path) -> None:
    settings, cache = run_job("latent_moments", storage)
    found = load_moments(f"{settings.run.folder}/moments", cache.spec.latent_shape)
    posteriors = np.stack([read_latent(cache.path, row) for row in cache.select(TRAIN)]).astype(np.float64)
    scale = cache.spec.scaling_factor
    assert found.clips == 150
    np.testing.assert_allclose(found.mean, scale * posteriors[:, 0].mean(0), rtol=0, atol=1e-6)
    exact = scale**2 * (posteriors[:, 0].var(0).mean() + np.exp(posteriors[:, 1]).mean())
    assert found.variance == pytest.approx(exact, rel=1e-6)


def test_outputs_of_the_cluster_equal_the_priors(ray_cluster: None, storage: Path) -> None:
    settings, cache = run_job("cache_prior", storage)
    prepare("finetune", settings)  # takes them for this cache and this prior
    read = prior_reader(cache, weights_hash(shipped_path(settings.prior_export)))
    prior, classes = load_frozen_prior(settings.prior_export)
    expected = outputs_of(prior, classes, cache, cache.rows[:5], "cpu")
    for row, output in zip(cache.rows[:5], expected, strict=True):
        np.testing.assert_allclose(read(row), output, atol=1e-3)
    assert not missing_shards(cache, weights_hash(shipped_path(settings.prior_export)))
