"""What is compared differs in what is claimed, and in nothing else."""

from typing import Any

import pytest

from experiments.ablation.protocol import SCRATCH, TUNED, measurements, models
from pipeline.errors import UserError
from pipeline.settings import Settings, load


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(["--recipe", "demo", "--recipe", "ablation", "--run.storage", "/nowhere"])[0]


def differences(one: Settings, other: Settings) -> set[str]:
    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return found

    left, right = flat(one.model_dump()), flat(other.model_dump())
    return {name for name in left if left[name] != right[name]} - {"run.name"}


def test_models_of_a_table_differ_in_bridge_and_prior_only(settings: Settings) -> None:
    made = {model.name: model for model in models(settings, seed=1)}
    assert set(made) == {*TUNED, *SCRATCH, "timenoise", "prior"}
    assert {model.settings.run.seed for model in made.values()} == {1}
    saf, plain = made["saf"].settings, made["no-saf"].settings
    assert differences(saf, plain) == {"bridge.saf"}
    assert differences(made["diffusion"].settings, plain) == {"bridge.process"}
    noised = differences(made["diffusion"].settings, made["timenoise"].settings)
    assert noised == {"bridge.time_noise", "train.checkpoint_every"}
    allowed = {"bridge.process", "bridge.prior", "bridge.prior_path", "model.prior_condition"}
    for name in SCRATCH:
        assert differences(made["bridge"].settings, made[name].settings) <= allowed
        assert made[name].settings.train.init is None or name not in SCRATCH


def test_what_needs_the_neural_prior_waits_for_that_of_its_seed(settings: Settings) -> None:
    made = {model.name: model for model in models(settings, seed=2)}
    needing = {name for name, model in made.items() if model.needs}
    assert needing == {"vdt-i2v-np", "bridge-replicated-np", "bridge-neural", "bridge-np"}
    for name in needing:
        assert made[name].needs == "prior-s2"
        assert made[name].settings.prior_export == f"{made['prior'].settings.run.folder}/step200"


def test_every_measurement_is_made_once_and_no_sampler_gets_more_evaluations(settings: Settings) -> None:
    made = measurements(settings.ablate, models(settings, seed=0))
    keys = [one.key for one in made]
    assert len(set(keys)) == len(keys)
    assert sorted(one.step for one in made if one.model.name == "saf" and not one.sampler) == [40, 80, 160]
    counts: dict[str, list[int]] = {}
    for one in made:
        if one.clips == settings.ablate.sampler_clips:
            counts.setdefault(f"{one.model.name} {one.sampler}", []).append(one.evaluations)
    assert len(counts) == 8
    for found in counts.values():
        assert all(
            at_most - 2 < count <= at_most for count, at_most in zip(found, settings.ablate.evaluations, strict=True)
        )


def test_only_the_models_of_the_chosen_experiments_are_trained(settings: Settings) -> None:
    for experiments, expected in ((["priors"], {"prior", *SCRATCH}), (["saf"], set(TUNED)), (["samplers"], set(TUNED))):
        asked = settings.model_copy(update={"ablate": settings.ablate.model_copy(update={"experiments": experiments})})
        assert {model.name for model in models(asked, seed=0)} == expected


def test_more_held_out_than_trained_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"ablate\.clips = 64 is more than half of ablate\.videos = 100; lower it"):
        load(["--ablate.videos", "100"])
