"""What the driver refuses, plans, and recognises as done."""

from pathlib import Path

import pytest
import torch
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.data.cache.info import CacheSpec
from pipeline.errors import UserError
from pipeline.models.build import build_image_to_video
from pipeline.settings import VideoModelSettings
from pipeline.storage.files import read_json, write_json
from pipeline.train.export.model_card import model_card
from pipeline.train.export.write import export_config
from pipeline.train.plan import (
    CHECKPOINTS,
    FINGERPRINT_FILE,
    RunStatus,
    plan_training,
    prepare,
    record,
    run_status,
    training_flops,
)
from pipeline.train.spec import train_spec


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    write_cache(tiny_settings(tmp_path))
    return tmp_path


def finish(folder: str) -> None:
    export = Path(folder) / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")


def test_preparing_only_reads(storage: Path) -> None:
    before = sorted(storage.rglob("*"))
    plan_training(prepare("finetune", tiny_settings(storage)))
    assert sorted(storage.rglob("*")) == before


def test_a_missing_and_a_different_cache_are_refused(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match=r"make one with jobs/cache_latents.py"):
        prepare("finetune", tiny_settings(tmp_path_factory.mktemp("empty")))
    with pytest.raises(UserError, match=r"data.stride: cache has 1, settings say 2"):
        prepare("prior", tiny_settings(storage, "--data.stride=2"))


def test_a_cache_of_held_out_clips_only_is_refused(tmp_path: Path) -> None:
    write_cache(tiny_settings(tmp_path), clips=0, held_out=3)
    with pytest.raises(UserError, match="no training clips"):
        prepare("finetune", tiny_settings(tmp_path))


def test_a_finished_run_is_done_whatever_the_workers(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    assert run_status(run) == RunStatus.NEW
    record(run)
    finish(run.spec.folder)
    assert run_status(run) == RunStatus.DONE
    free = ("--cluster.train.workers=1", "--train.log_every=9", "--train.zero_stage=1", "--sample.steps=3")
    assert run_status(prepare("finetune", tiny_settings(storage, *free))) == RunStatus.DONE


@pytest.mark.parametrize(
    "change", ["train.learning_rate=0.5", "model.depth=4", "bridge.beta1=20", "run.seed=1", "train.steps=7"]
)
def test_a_finished_run_of_other_settings_is_refused(storage: Path, change: str) -> None:
    run = prepare("finetune", tiny_settings(storage))
    record(run)
    finish(run.spec.folder)
    key = change.split("=")[0]
    with pytest.raises(UserError, match=rf"finished run of other settings \({key}: was .*another --run.name"):
        run_status(prepare("finetune", tiny_settings(storage, f"--{change}")))


def test_a_run_of_a_version_without_a_setting_had_its_default(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    record(run)
    finish(run.spec.folder)
    written = read_json(f"{run.spec.folder}/{FINGERPRINT_FILE}")
    del written["bridge.loss_weight"], written["train.ema_decay"]
    write_json(f"{run.spec.folder}/{FINGERPRINT_FILE}", written)
    assert run_status(run) == RunStatus.DONE
    with pytest.raises(UserError, match=r"train.ema_decay: was None, now 0.9"):
        run_status(prepare("finetune", tiny_settings(storage, "--train.ema_decay=0.9")))


def test_a_run_recorded_with_settings_that_are_gone_is_the_same_run(storage: Path) -> None:
    run = prepare("prior", tiny_settings(storage))
    record(run)
    finish(run.spec.folder)
    address = f"{run.spec.folder}/{FINGERPRINT_FILE}"
    gone = {"prior.model.image_condition": "none", "prior.model.prior_condition": False}
    write_json(address, read_json(address) | gone)
    assert run_status(run) == RunStatus.DONE


def test_more_clips_are_another_run(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    record(run)
    finish(run.spec.folder)
    write_cache(tiny_settings(storage), clips=12)
    with pytest.raises(UserError, match=r"cache.clips: was '13 .*now '1"):
        run_status(prepare("finetune", tiny_settings(storage)))


def test_a_half_finished_run_goes_on_with_other_workers_but_not_with_other_settings(storage: Path) -> None:
    run = prepare("prior", tiny_settings(storage))
    record(run)
    other = prepare("prior", tiny_settings(storage, "--prior.train.learning_rate=0.5"))
    assert run_status(other) == RunStatus.NEW  # no checkpoint was made yet
    (Path(run.spec.folder) / CHECKPOINTS).mkdir()
    with pytest.raises(UserError, match=r"half-finished .*prior.train.learning_rate: was 0.001, now 0.5"):
        run_status(other)
    moved = ("--cluster.train.workers=1", "--prior.train.zero_stage=1")
    assert run_status(prepare("prior", tiny_settings(storage, *moved))) == RunStatus.INTERRUPTED


def test_a_foreign_export_is_not_overwritten(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    finish(run.spec.folder)
    with pytest.raises(UserError, match="made elsewhere"):
        run_status(run)


def test_flops_are_those_of_the_published_model() -> None:
    """Latte-XL/2 on 16 + 1 frames of 32 x 32 latents: 12 TFLOP a clip, forward and backward."""
    model = VideoModelSettings(
        backbone="latte",
        unet3d=None,
        cogvideox=None,
        size="XL",
        hidden_size=None,
        depth=None,
        num_heads=None,
        patch_size=2,
        image_condition="none",
        prior_condition=False,
    )
    spec = CacheSpec("", {}, 1.0, [16, 4, 32, 32], None, ["x"] * 101)
    with torch.device("meta"):
        network = build_image_to_video(model, [16, 4, 32, 32], 101)
    assert 11e12 < training_flops(network, spec) < 13e12


def test_the_plan_gives_the_figures(storage: Path) -> None:
    plan = plan_training(prepare("finetune", tiny_settings(storage)))
    assert "20 tokens a clip" in plan and "6 of 4 clips = 2.4 epochs: 2 workers x 2 micro-batches of 1" in plan
    assert "10 training and 3 held-out clips" in plan


def test_the_export_holds_what_sampling_needs(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    config = export_config(train_spec("finetune", run.settings, run.cache.spec))
    wanted = {"kind", "model", "bridge", "latent_shape", "classes", "vae", "cache_fingerprint", "steps", "data"}
    assert wanted | {"prior_export"} <= set(config) and config["prior_export"] is None


def test_the_model_card_describes_the_weights_and_their_terms(storage: Path) -> None:
    run = prepare("finetune", tiny_settings(storage))
    config = export_config(train_spec("finetune", run.settings, run.cache.spec))
    summary = {"parameters": 12345, "steps": 6, "clips": 10, "held_out": 3, "start": "from scratch"}
    summary |= {"final_loss": 0.25, "validation_losses": [[0, 1.5], [6, 0.75]]}
    card = model_card(config, run.fingerprint, "webvid", summary)
    for wanted in ("4 x 4 x 4 x 4", run.cache.spec.fingerprint, "bounce, slide", "| parameters | 12,345 |"):
        assert wanted in card
    assert "before training | 1.5 |" in card and "at the end | 0.75 |" in card and "held-out error" not in card
    assert "the terms of the videos" in card and "train.learning_rate: 0.001" in card and "`webvid`" in card
