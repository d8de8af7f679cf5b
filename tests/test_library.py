"""The package serves other programs: README's snippet runs, and importing the package alone is light."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny_cache import tiny_settings, write_cache

import pipeline
from pipeline.models.build import build_image_to_video
from pipeline.models.checkpoints.exports import save_export
from pipeline.settings import ROOT
from pipeline.train.export.write import export_config
from pipeline.train.spec import train_spec


def test_snippet_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path / "runs", "--run.name=demo")
    spec = write_cache(settings).spec
    network = build_image_to_video(settings.model, spec.latent_shape, len(spec.classes), spec.text_shape)
    network.backbone.initialise(0)
    save_export(
        settings.model_export, network.backbone.state_dict(), export_config(train_spec("finetune", settings, spec))
    )
    (snippet,) = re.findall(r"```python\n(from pipeline import .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippet.strip().splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    clips, model = names["clips"], names["model"]
    assert isinstance(clips, pipeline.LatentDataset) and clips[0]["z0"].shape == tuple(spec.latent_shape)
    assert isinstance(model, type(network))


def test_import_of_the_package_alone_is_light() -> None:
    script = "import pipeline, sys; assert not {'torch', 'ray', 'pydantic', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", pipeline.__all__)
def test_public_name_is_there(name: str) -> None:
    assert callable(getattr(pipeline, name))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing
