"""Evaluation of a samples folder with real Ray actors: numbers, kept features, and the reasons of skipped metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import JobFailed, UserError
from pipeline.media import encode_mp4
from pipeline.metrics.evaluate import (
    PROTOCOLS,
    Samples,
    check_expected,
    departures,
    features_address,
    measure,
    plan_evaluation,
    run_evaluation,
)
from pipeline.settings import ROOT, Settings, build, read_yaml
from pipeline.shipped.detector import Detector

CLIPS = 6


def with_evaluate(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=values)})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Six samples, five with a true clip, and an untrained detector."""
    folder, random = tmp_path / "run" / "samples", np.random.default_rng(0)
    folder.mkdir(parents=True)
    keys = [f"clip{number}" for number in range(CLIPS)]
    for number, key in enumerate(keys):
        record = {"key": key, "fingerprint": key, "true": number > 0, "caption": "", "label": "Spin"}
        (folder / f"{key}.json").write_text(json.dumps(record))
        for kind in ("generated", *(["true"] if number else [])):
            frames = random.integers(0, 256, (4, 1, 1, 3), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
            (folder / f"{key}.{kind}.mp4").write_bytes(encode_mp4(frames, 8))
    summary = {"items": keys, "fingerprint": "f", "source": "held_out", "settings": {"stride": 3}}
    (folder / "summary.json").write_text(json.dumps(summary))
    detector = tmp_path / "detector"
    detector.mkdir()
    torch.manual_seed(0)
    save_file(Detector(3).state_dict(), detector / "model.safetensors")
    (detector / "config.json").write_text('{"classes": ["a", "b", "c"]}')
    overlay = {
        "run": {"name": "run", "storage": str(tmp_path)},
        "evaluate": {"detector": str(detector), "batch": 4, "bootstrap": 20},
        "cluster": {"sample": {"actors": 2, "num_cpus": 1, "num_gpus": 0}},
    }
    return build([read_yaml(ROOT / "ray_config.yaml"), overlay])


@pytest.mark.ray
def test_kept_features_give_the_same_metrics(settings: Settings, ray_cluster: None) -> None:
    assert "detector: to run" in plan_evaluation(settings.evaluate, settings.run.folder)
    result = run_evaluation(settings)
    written = json.loads(Path(settings.run.folder, "evaluate", "metrics.json").read_text())
    assert written == result
    frechet, inception = (result["metrics"][name] for name in ("frechet_detector", "inception_detector"))
    assert (frechet["count"], frechet["divisor"], frechet["frames"]) == (CLIPS - 1, "N", [4])
    assert inception["count"] == CLIPS and 1 <= inception["value"] <= 3
    assert len(frechet["weights"]["sha256"]) == 64
    without = {
        name: f"no weights: evaluate.{protocol.network} is null"
        for name, protocol in PROTOCOLS.items()
        if protocol.network != "detector"
    }
    assert result["skipped"].items() > without.items() and "package of its own" in result["skipped"]["vbench"]

    for path in Path(settings.run.folder, "samples").glob("*.mp4"):
        path.unlink()  # nothing is looked at twice
    assert "detector: features are there" in plan_evaluation(settings.evaluate, settings.run.folder)
    expected = Path(settings.run.storage, "expected.json")
    expected.write_text(json.dumps(result))
    again = with_evaluate(settings, expected=str(expected))
    assert run_evaluation(again)["metrics"] == result["metrics"]
    result["metrics"]["frechet_detector"]["value"] *= 1.03
    expected.write_text(json.dumps(result))
    with pytest.raises(JobFailed, match=r"frechet_detector: .* more than 2% apart"):
        run_evaluation(again)


def test_features_of_other_weights_or_other_clips_have_another_address() -> None:
    records = [{"key": "a", "fingerprint": "1", "true": True}]
    samples = Samples("folder", {}, records)
    again = samples._replace(records=[{**records[0], "fingerprint": "2"}])
    asked = ((samples, "detector", "sha"), (again, "detector", "sha"), (samples, "detector", "other"))
    assert len({features_address(*each, run_folder="run") for each in asked}) == 3


def test_frechet_pairs_generated_with_true_clips(settings: Settings) -> None:
    random = np.random.default_rng(1)
    true = random.normal(size=(CLIPS - 1, 3))
    shifted = np.concatenate([np.full((1, 3), 1e6), true + np.array([3.0, 0, 4.0])])  # the first has no true clip
    records = [{"true": number > 0} for number in range(CLIPS)]
    arrays = {"features": np.concatenate([shifted, true]), "frames": np.full(2 * CLIPS - 1, 16)}
    found = measure(PROTOCOLS["fvd"], arrays, Samples("", {}, records), settings.evaluate.bootstrap, settings.run.seed)
    assert found["value"] == pytest.approx(25)
    assert found["departs_from_protocol"] == ["5 clips, fewer than 2048"]
    assert (found["low"], found["high"]) == (pytest.approx(25), pytest.approx(25))  # each draw is shifted by as much


def test_departures_from_the_published_protocol_are_named() -> None:
    assert departures(PROTOCOLS["fvd"], 2048, [16]) == []
    assert departures(PROTOCOLS["fvd"], 2048, [8, 16]) == ["clips of [8, 16] frames, not 16"]
    assert departures(PROTOCOLS["frechet_detector"], 5, [4]) == []


def test_missing_samples_and_weights_are_named_in_one_line(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"no samples there .*run jobs/sample\.py"):
        run_evaluation(with_evaluate(settings, samples="/nowhere"))
    with pytest.raises(UserError, match=r"evaluate\.i3d = /nowhere"):
        plan_evaluation(with_evaluate(settings, i3d="/nowhere").evaluate, settings.run.folder)
    with pytest.raises(UserError, match=r"evaluate\.expected = /nowhere"):
        check_expected({}, "/nowhere")
