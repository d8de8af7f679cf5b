"""--dry-run: a few clips tell what the whole source takes, the same ones every time, and nothing is written."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from diffusers import AutoencoderKL
from helpers.tiny_vae import save_tiny_vae
from helpers.video_files import write_video

from pipeline.data.cache.commit import commit
from pipeline.data.cache.encode import EncodeClips
from pipeline.data.cache.estimate import (
    Estimate,
    describe_estimate,
    describe_online,
    estimate,
    flops_a_frame,
    job_seconds,
)
from pipeline.data.cache.info import resolve_spec
from pipeline.data.cache.run import plan_cache
from pipeline.data.decode.stage import decode_clips
from pipeline.data.plan.clips import plan_table
from pipeline.settings import Settings, load


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Ten videos, of which two cannot be used."""
    folder = tmp_path_factory.mktemp("estimate")
    for index in range(8):
        write_video(folder / "videos" / f"{index}.mp4", 47 + index)
    write_video(folder / "videos" / "2short.mp4", 7)
    (folder / "videos" / "5text.mkv").write_text("not a video")
    arguments = ["--recipe", "demo", "--data.source", "folder", "--data.path", str(folder / "videos")]
    arguments += ["--data.stride=3", "--vae.path", save_tiny_vae(folder / "vae"), "--run.storage", str(folder / "runs")]
    return load(arguments)[0]


def test_the_estimate_is_of_clips_that_were_really_made(settings: Settings, tmp_path: Path) -> None:
    pending = plan_table(settings.data)
    spec = resolve_spec(settings.data, settings.vae, settings.text)
    found = estimate(pending, spec, settings.data, settings.vae, settings.cluster)
    assert (found.clips, found.sample, found.rejected) == (10, 8, {"too_short": 1, "unreadable": 1})
    assert found.measured and found.decode_s > 0 and found.encode_s > 0 and found.gpu_hours == 0
    actor = EncodeClips(settings.vae, settings.data, 1, 0)
    commit(str(tmp_path), actor(pa.concat_tables(decode_clips(pending, settings.data))))
    (tar,) = (tmp_path / "shards").iterdir()
    assert found.clip_bytes == pytest.approx(tar.stat().st_size / 8, rel=0.1)
    assert "2 of them cannot be used (1 too_short, 1 unreadable)" in describe_estimate(found)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(settings: Settings) -> None:
    words = plan_cache(settings)
    assert "epochs with data.online instead: " in words
    assert "10 to do" in words and "Estimate: " in words and "assumed: decoding and encoding share" in words
    assert not Path(settings.run.storage).exists()


def test_without_the_gpu_that_is_asked_for_the_vaes_arithmetic_is_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    resources = settings.cluster.encode.model_copy(update={"num_gpus": 1.0, "actors": 8})
    cluster = settings.cluster.model_copy(update={"encode": resources})
    spec = resolve_spec(settings.data, settings.vae, settings.text)
    found = estimate(plan_table(settings.data), spec, settings.data, settings.vae, cluster)
    assert not found.measured
    assert found.gpu_hours == pytest.approx(10 * 6 / 8 * found.encode_s / 3600)
    assert found.seconds >= found.gpu_hours * 3600 / 8
    assert "a GPU does 100 TFLOP/s in the VAE's encoder; none is here to measure" in describe_estimate(found)


def test_without_a_cache_every_epoch_is_made_again() -> None:
    found = Estimate(3600, 10, {"timeout": 5}, 0.5, 1.0, True, 2**20, 0.0, 0.0, [])
    assert "50.0 epochs with data.online instead: 49 hours more" in describe_online(
        found, 50
    )  # 3600 x 0.5 s + 1800 x 1 s
    assert "1.76 GiB less in storage" in describe_online(found, 50)
    assert "the same work, with nothing kept" in describe_online(found, 1)


def test_arithmetic_of_the_stable_diffusion_vae() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
        )
    assert flops_a_frame(vae, 256, 256) / 1e9 == pytest.approx(272.7, rel=0.01)


def test_the_slower_stage_decides_on_a_cluster(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://there:8265")

    def seconds(decode: float, encode: float, actors: int, tasks: int | None) -> float:
        resources = settings.cluster.encode.model_copy(update={"actors": actors})
        decoding = settings.cluster.decode.model_copy(update={"max_tasks": tasks})
        cluster = settings.cluster.model_copy(update={"encode": resources, "decode": decoding})
        return job_seconds(decode, encode, cluster)[0]

    assert seconds(1000, 800, actors=8, tasks=50) == 100
    assert seconds(1000, 800, actors=8, tasks=5) == 200
    assert seconds(1000, 800, actors=8, tasks=None) == 100
