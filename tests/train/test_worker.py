"""Ray Train and DeepSpeed, for real: what a run leaves, how it ends, and that workers do not change what is learned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_cache import tiny_settings, write_cache
from safetensors.torch import load_file

from pipeline.data.load.batches import make_batch
from pipeline.data.load.reader import Source
from pipeline.errors import JobFailed, UserError
from pipeline.models.build import load_model, load_prior
from pipeline.runtime.metrics import PARTS
from pipeline.storage.files import read_json
from pipeline.train.losses import replicated_error
from pipeline.train.plan import CHECKPOINTS, Run, prepare
from pipeline.train.report.history import CURVE, HISTORY
from pipeline.train.report.rows import read_history
from pipeline.train.run import run_training

pytestmark = pytest.mark.ray
PRIOR = [f"--prior.train.{line}" for line in ("steps=40", "learning_rate=0.02", "checkpoint_every=40")]


@pytest.fixture(scope="module")
def prior(ray_cluster: None, storage: Path) -> tuple[Run, dict[str, Any]]:
    run = prepare("prior", tiny_settings(storage, *PRIOR))
    return run, run_training(run)


@pytest.fixture(scope="module")
def bridge(prior: tuple[Run, dict[str, Any]], storage: Path) -> tuple[Run, dict[str, Any]]:
    """A bridge from the neural prior, by as many workers as there is room for: two."""
    run = prepare("finetune", tiny_settings(storage, "--bridge.prior=neural", "--cluster.train.workers=[1,2]"))
    return run, run_training(run)


def test_the_prior_learns_and_reports_its_error(prior: tuple[Run, dict[str, Any]]) -> None:
    run, summary = prior
    errors = summary["held_out_error"]
    assert errors["prior"] < summary["validation_losses"][0][1]
    source = Source(run.cache, run.cache.select("train"), [], 0.0, 0)
    one = replicated_error(lambda: torch.empty(0), make_batch(source, [(i, i) for i in range(10)], "train", 0))
    assert errors["replicated"] == pytest.approx(float(one.mean()), rel=0.5)  # of other clips of the same kind
    module, config = load_prior(run.spec.export)
    assert config["kind"] == "prior" and module.backbone.null_class == 2


def test_a_run_leaves_export_history_and_summary(bridge: tuple[Run, dict[str, Any]]) -> None:
    run, summary = bridge
    model, config = load_model(run.spec.export)
    assert config["prior_export"] == run.settings.prior_export and config["steps"] == 6
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    rows = read_history(f"{run.spec.folder}/{HISTORY}")
    assert [row["step"] for row in rows] == list(range(7))
    assert all(row["loss"] and row["gradient_norm"] and row["samples_per_s"] for row in rows[1:])
    assert [row["step"] for row in rows if row["validation_loss"] is not None] == [0, 3, 6]
    assert all(sum(row[part] or 0.0 for part in PARTS) == pytest.approx(1, abs=1e-4) for row in rows[1:])
    assert sum(row["checkpoint"] is not None for row in rows) == 2, "the row after each save but the last"
    assert (summary["steps"], summary["clips"], summary["held_out"]) == (6, 10, 3)
    assert summary["final_loss"] == pytest.approx(rows[-1]["loss"], rel=1e-4)
    assert {path.name for path in Path(run.spec.export).iterdir()} == {"model.safetensors", "config.json", "README.md"}
    left = {path.name for path in Path(run.spec.folder).iterdir()}
    assert left == {
        "checkpoints",
        "export",
        HISTORY,
        CURVE,
        "made_with.json",
        "settings.yaml",
        "summary.json",
        "tensorboard",
    }


def test_a_second_start_finds_it_done(bridge: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, summary = bridge
    monkeypatch.setattr("pipeline.runtime.connect.start_ray", None)  # would fail if it were called
    assert run_training(run) == summary


def test_one_worker_learns_what_two_do(bridge: tuple[Run, dict[str, Any]], storage: Path) -> None:
    run, _ = bridge
    single = tiny_settings(
        storage,
        "--bridge.prior=neural",
        "--run.name=single",
        "--cluster.train.workers=1",
        "--train.micro_batch=4",
        f"--cache.path={storage}/tiny/cache",
        f"--bridge.prior_path={run.settings.prior_export}",
    )
    other = prepare("finetune", single)
    run_training(other)
    mine, theirs = (load_file(f"{one.spec.export}/model.safetensors") for one in (run, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-4, msg=name)
    losses = [[row["loss"] for row in read_history(f"{one.spec.folder}/{HISTORY}")[1:]] for one in (run, other)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)


def test_a_cluster_that_is_too_small_is_refused_beforehand(ray_cluster: None, tmp_path: Path) -> None:
    write_cache(tiny_settings(tmp_path))
    for change, asked in (
        (("--cluster.train.workers=4",), "cluster.train.workers = 4 with cluster.train.num_cpus = 1"),
        (("--cluster.train.num_cpus=3",), "cluster.train.num_cpus = 3 each"),
        (("--cluster.train.num_gpus=1",), "cluster.train.num_gpus = 1 each"),
    ):
        with pytest.raises(UserError, match=f"{asked}.* 2 CPU and 0 GPU"):
            run_training(prepare("finetune", tiny_settings(tmp_path, *change)))


@pytest.mark.long
def test_a_damaged_clip_ends_the_run_at_once_or_is_left_out_and_counted(ray_cluster: None, tmp_path: Path) -> None:
    # cluster.train.max_failures allows to start again, which would not help
    diverging = ("--train.ema_decay=0.9", "--train.learning_rate=1", "--train.validate_every=2")
    settings = tiny_settings(tmp_path, *diverging)
    row = write_cache(settings).select("train")[0]
    shard = Path(settings.cache_path, "shards", row["shard"])
    content = bytearray(shard.read_bytes())
    content[row["offset"] + 200] ^= 1
    shard.write_bytes(content)
    run = prepare("finetune", settings)
    with pytest.raises(JobFailed, match=rf"clip {row['key']}: .*not those that were written.*train.damaged_clips skip"):
        run_training(run)
    assert not Path(run.spec.export).exists()
    keeping = ("--train.keep_checkpoints=1", "--train.keep_by=validation_loss")
    skipping = prepare("finetune", tiny_settings(tmp_path, *diverging, "--train.damaged_clips=skip", *keeping))
    summary = run_training(skipping)
    assert summary["steps"] == 6 and Path(run.spec.export).exists()
    rows = read_history(f"{run.spec.folder}/{HISTORY}")
    assert (rows[-1]["damaged"] or 0) >= 2  # 6 steps of 4 of 10 clips: it came at least twice

    kept = read_json(f"{run.spec.folder}/{CHECKPOINTS}/checkpoint_manager_snapshot.json")["checkpoint_results"]
    saved = {int(row["step"] or 0): row["validation_loss"] for row in rows if row["step"] in (2, 4, 6)}
    best = min(saved, key=lambda step: saved[step] or 0.0)
    assert best < 6, "the loss does not rise, so this shows nothing"
    assert {one["metrics"]["step"] for one in kept} == {best, 6}, "the best and the latest"
