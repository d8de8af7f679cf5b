"""What becomes of items whose source is lost, changed or broken."""

import shutil
from pathlib import Path

import pytest
from helpers.tiny_models import load_run

from pipeline.data.cache.manifest import open_cache
from pipeline.sampling.generate import LoadedModel
from pipeline.sampling.items import Item, held_out_items
from pipeline.sampling.measures import psnr
from pipeline.sampling.write import TrueClips, load_source, sample_batch
from pipeline.settings import Settings


@pytest.fixture(scope="module")
def sampler(tiny_run: Settings) -> LoadedModel:
    return load_run(tiny_run)


def clips_of(settings: Settings) -> TrueClips:
    cache = open_cache(settings.cache_path)
    return TrueClips(cache.path, cache.spec, settings.data)


def items_of(settings: Settings) -> list[Item]:
    return held_out_items(open_cache(settings.cache_path), None)


def test_true_clip_is_the_one_that_was_cached(tiny_run: Settings, sampler: LoadedModel) -> None:
    cache = open_cache(tiny_run.cache_path)
    source = load_source(items_of(tiny_run)[0], sampler, clips_of(tiny_run))
    assert source.true is not None and source.image is not None and source.latents is not None
    assert psnr(source.image, source.true[0]) == 100
    from pipeline.data.cache.encode import EncodeClips

    encoder = EncodeClips(tiny_run.vae, tiny_run.data, num_cpus=1, num_gpus=0)
    mean = encoder.encode([source.true])[0, 0] * cache.spec.scaling_factor
    assert abs(mean - source.latents.numpy()).max() < 1e-2


@pytest.mark.parametrize("problem", ["missing", "changed"])
def test_lost_or_changed_video_is_stood_in_for_by_its_latents(
    tiny_run: Settings, sampler: LoadedModel, tmp_path: Path, problem: str
) -> None:
    first, second = items_of(tiny_run)[:2]
    assert first["row"] is not None
    uri = tmp_path / "video.mp4"
    if problem == "changed":
        shutil.copy(second["uri"], uri)
    lost: Item = {**first, "uri": str(uri), "row": {**first["row"], "uri": str(uri)}}
    records, rejected = sample_batch(sampler, [lost], ["-"], clips_of(tiny_run), 0, str(tmp_path / "out"))
    assert not rejected
    assert f"({problem})" in records[0]["note"]
    assert records[0]["metrics"]["motion_true"] == records[0]["metrics"]["motion_true_vae"]
    assert (tmp_path / "out" / f"{first['key']}.true.mp4").stat().st_size > 0


def test_image_that_is_gone_costs_itself_only(tiny_run: Settings, sampler: LoadedModel, tmp_path: Path) -> None:
    good = items_of(tiny_run)[0]
    gone = Item(key="g", name="g.png", label="", caption="", uri=str(tmp_path / "g.png"), row=None)
    records, rejected = sample_batch(sampler, [gone, good], ["-", "-"], clips_of(tiny_run), 0, str(tmp_path))
    assert [record["key"] for record in records] == [good["key"]]
    assert rejected[0].name == "g.png" and "cannot be read" in rejected[0].reason
    assert not (tmp_path / "g.json").exists()
