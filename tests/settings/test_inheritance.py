"""`prior.model` and `prior.train` follow `model` and `train` in what they do not state."""

import pytest

from pipeline.models.build import prior_model
from pipeline.settings import ROOT, build, load, read_yaml

OWN = {"init", "lora", "trainable", "steps", "label_dropout"}  # of prior.train in ray_config.yaml


def test_prior_states_only_what_differs() -> None:
    prior = read_yaml(ROOT / "ray_config.yaml")["prior"]
    assert prior["model"] == {} and set(prior["train"]) == OWN


def test_prior_follows_the_command_line_where_nothing_states_it() -> None:
    settings, _ = load(["--train.precision=float32", "--train.steps=5000", "--model.size=B", "--train.init=x"])
    assert settings.prior.train.precision == "float32" and settings.prior.model.size == "B"
    assert settings.prior.train.steps == 100000 and settings.prior.train.init is None


def test_prior_keeps_what_is_typed_for_it() -> None:
    settings, _ = load(["--train.learning_rate=0.5", "--prior.train.learning_rate=0.25"])
    assert (settings.train.learning_rate, settings.prior.train.learning_rate) == (0.5, 0.25)


def test_what_a_recipe_states_for_the_prior_outlives_the_command_line_for_train() -> None:
    settings, _ = load(["--recipe=demo", "--train.steps=25", "--train.warmup_steps=5", "--model.depth=8"])
    assert (settings.prior.train.steps, settings.prior.model.depth) == (150, 4)
    assert settings.prior.train.warmup_steps == 5


def test_prior_does_not_inherit_adapters_or_initial_weights() -> None:
    settings, _ = load(["--train.init=x", "--train.lora.rank=4", "--train.lora.alpha=8", "--train.trainable=[a]"])
    train = settings.prior.train
    assert (train.init, train.lora.rank, train.lora.alpha, train.trainable) == (None, None, 64, None)


def test_resolved_settings_resolve_to_themselves() -> None:
    settings, _ = load(["--recipe", "ablation"])
    assert build([settings.model_dump(mode="json")]) == settings


@pytest.mark.parametrize("condition", [{}, {"image_condition": "none", "prior_condition": False}])
def test_exports_of_both_versions_give_the_same_prior(condition: dict[str, object]) -> None:
    sizes = {"size": None, "hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
    assert prior_model({"model": {**sizes, **condition}}).model_dump() == sizes
