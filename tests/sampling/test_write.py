"""What becomes of items whose source is lost, changed or broken."""

import shutil
from pathlib import Path

import pytest
from helpers.tiny_models import load_run

from pipeline.data.cache.manifest import open_cache
from pipeline.sampling.generate import LoadedModel
from pipeline.sampling.items import Item, held_out_items
from pipeline.sampling.measures import psnr
from pipeline.sampling.write import TrueClips, load_original, sample_batch
from pipeline.settings import Settings


@pytest.fixture(scope="module")
def loaded(tiny_run: Settings) -> LoadedModel:
    return load_run(tiny_run)


def clips_of(settings: Settings) -> TrueClips:
    cache = open_cache(settings.cache_path)
    return TrueClips(cache.path, cache.spec, settings.data)


def items_of(settings: Settings) -> list[Item]:
    return held_out_items(open_cache(settings.cache_path), None)


def test_true_clip_is_the_one_that_was_cached(tiny_run: Settings, loaded: LoadedModel) -> None:
    cache = open_cache(tiny_run.cache_path)
    original = load_original(loaded, clips_of(tiny_run), items_of(tiny_run)[0])
    assert original.true is not None and original.image is not None and original.latents is not None
    assert psnr(original.image, original.true[0]) == 100
    from pipeline.data.cache.encode import EncodeClips

    encoder = EncodeClips(tiny_run.vae, tiny_run.data, num_cpus=1, num_gpus=0)
    mean = encoder.encode([original.true])[0, 0] * cache.spec.scaling_factor
    assert abs(mean - original.latents.numpy()).max() < 1e-2


@pytest.mark.parametrize("problem", ["missing", "changed"])
def test_lost_or_changed_video_is_stood_in_for_by_its_latents(
    tiny_run: Settings, loaded: LoadedModel, tmp_path: Path, problem: str
) -> None:
    first, second = items_of(tiny_run)[:2]
    assert first["row"] is not None
    uri = tmp_path / "video.mp4"
    if problem == "changed":
        shutil.copy(second["uri"], uri)
    lost: Item = {**first, "uri": str(uri), "row": {**first["row"], "uri": str(uri)}}
    [(record, files)], rejected = sample_batch(loaded, clips_of(tiny_run), 0, [lost])
    assert not rejected
    assert f"({problem})" in record["note"]
    assert record["metrics"]["motion_true"] == record["metrics"]["motion_true_vae"]
    assert files["true.mp4"]


def test_image_that_is_gone_costs_itself_only(tiny_run: Settings, loaded: LoadedModel, tmp_path: Path) -> None:
    good = items_of(tiny_run)[0]
    gone = Item(key="g", name="g.png", label="", caption="", uri=str(tmp_path / "g.png"), row=None)
    made, rejected = sample_batch(loaded, clips_of(tiny_run), 0, [gone, good])
    assert [record["key"] for record, _ in made] == [good["key"]]
    assert rejected[0].name == "g.png" and "cannot be read" in rejected[0].reason
