"""The whole page from made-up measurements whose distances are known."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.ablation.page import write_page
from experiments.ablation.protocol import STILL, Measurement, folder_of, measurements, models
from pipeline.settings import Settings, load
from pipeline.storage.files import write_bytes, write_json

CLIPS, SEEDS = 12, 2
TRUE = np.random.default_rng(0).normal(size=(CLIPS, 4))
# How far each model's features are moved: FD is four times the square
SHIFT = {"saf": 0.5, "no-saf": 1.0, "diffusion": 2.0, "timenoise": 2.0, "vdt-i2v": 1.0, "bridge": 1.0}
SHIFT |= {"vdt-i2v-np": 3.0, "bridge-replicated-np": 1.0, "bridge-neural": 1.5, "bridge-np": 0.5}


def measured_as(one: Measurement) -> dict[str, Any]:
    moved = SHIFT[one.model.name] - 0.2 * one.sampler.endswith("Analytic-Init")
    one_up = [1.0 + i for i in range(one.clips)]
    numbers: dict[str, list[Any]] = {"psnr_first_frame": one_up, "prior_error": one_up}
    numbers["latent_error"] = [SHIFT[one.model.name] + i for i in range(one.clips)]
    numbers["motion_ratio"] = [None] + [2.0 if one.model.name == "timenoise" else 0.5] * (one.clips - 1)
    features = (TRUE[: one.clips] + moved).tolist()
    return {"features": features, "probabilities": [[0.5, 0.5]] * one.clips, "seconds": 0.1, **numbers}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    lines = {"run.storage": tmp_path_factory.mktemp("page"), "ablate.seeds": SEEDS, "ablate.clips": CLIPS}
    lines |= {"ablate.sampler_clips": 6, "ablate.bootstrap": 20}
    arguments = [f"--{key}={value}" for key, value in lines.items()]
    return load(["--recipe", "demo", "--recipe", "ablation", *arguments])[0]


@pytest.fixture(scope="module")
def result(settings: Settings) -> dict[str, Any]:
    folder, stream = folder_of(settings.run), io.BytesIO()
    np.savez(stream, features=TRUE)
    write_bytes(f"{folder}/truth.npz", stream.getvalue())
    measured = [one for seed in range(SEEDS) for one in measurements(settings.ablate, models(settings, seed))]
    for one in measured:
        write_json(f"{folder}/measured/{one.key}.json", measured_as(one))
    write_json(f"{folder}/measured/{STILL}.json", {"features": TRUE.tolist(), "probabilities": []})
    return write_page(settings, measured, measured)


def test_every_claim_of_the_protocol_is_judged_by_its_difference(result: dict[str, Any]) -> None:
    found = {one["claim"].split(".")[0]: one for one in result["claims"]}
    assert list(found) == [str(number) for number in range(1, 11)]
    assert {number: one["verdict"] for number, one in found.items()} == {
        "1": "reproduced",
        "2": "reproduced",
        "3": "not decided",  # no difference at all
        "4": "reproduced",
        "5": "opposite",
        "6": "reproduced",
        "7": "reproduced",
        "8": "reproduced",
        "9": "reproduced",
        "10": "reproduced",
    }
    assert found["1"]["difference"]["value"] == pytest.approx(4 * (0.25 - 1.0))
    assert found["9"]["difference"]["value"] == pytest.approx(-1.5)  # of the motion ratio
    beside = {number: one["latent_error"]["value"] for number, one in found.items()}
    assert (beside["1"], beside["5"], beside["10"]) == pytest.approx((-0.5, 0.5, 0.0))


def test_page_has_every_cell_and_its_pictures(settings: Settings, result: dict[str, Any]) -> None:
    folder = Path(folder_of(settings.run))
    text = (folder / "results.md").read_text()
    for row in ("| saf, 40 | 1.00 (1.00 to 1.00) |", "| vdt-i2v-np | 36.00", "| timenoise, M 0.9, Analytic-Init |"):
        assert row in text
    for name in ("tables", "figure6", "samplers"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"ablation/{name}.png" in text
    assert json.loads((folder / "results.json").read_text())["claims"] == result["claims"]
    rows = list(csv.DictReader((folder / "measurements.csv").open()))
    assert len(rows) == SEEDS * len(result["cells"])
    assert {float(row["fd"]) for row in rows if row["model"] == "bridge-np"} == {1.0}


def test_a_measurement_that_lacks_a_seed_is_left_out_and_named(settings: Settings, result: dict[str, Any]) -> None:
    planned = [one for seed in range(SEEDS) for one in measurements(settings.ablate, models(settings, seed))]
    there = [one for one in planned if one.model.key != "no-saf-s1" and not one.sampler]
    partial = write_page(settings, planned, there)
    claims = {one["claim"].split(".")[0] for one in partial["claims"]}
    assert claims == {"2", "3", "4", "5", "6", "9"}
    text = Path(folder_of(settings.run), "results.md").read_text()
    assert "Not measured with every seed: diffusion M 0.8, " in text and ", no-saf, " in text
    assert "| no-saf" not in text and "samplers.png" not in text
