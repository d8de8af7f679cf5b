"""Names of earlier versions are accepted, with one line that says what became of them."""

import logging

import pytest

from pipeline.errors import UserError
from pipeline.settings import build, load, without_removed
from pipeline.settings import layers as table
from pipeline.settings.layers import recipe_layers


@pytest.mark.parametrize("argument", ["--prior.model.image_condition=frame", "--prior.model.prior_condition=true"])
def test_a_removed_setting_is_accepted_and_said_to_have_no_effect(
    argument: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, _ = load([argument])
    assert settings == load([])[0]
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert line.startswith(f"{argument[2:].partition('=')[0]} (command line): was removed and has no effect")


def test_settings_written_by_an_earlier_version_are_read() -> None:
    settings, _ = load(["--recipe", "demo"])
    tree = settings.model_dump(mode="json")
    tree["prior"]["model"] |= {"image_condition": "none", "prior_condition": False}
    assert build([tree]) == settings


def test_a_renamed_setting_sets_the_new_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(table.RENAMED, "bridge.neural", "model.prior_condition")
    settings, _ = load(["--bridge.neural=true"])
    assert settings.model.prior_condition
    assert "bridge.neural (command line): is called model.prior_condition now" in caplog.text


def test_a_setting_under_both_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.RENAMED, "train.rate", "train.learning_rate")
    with pytest.raises(
        UserError, match=r"^train.rate \(command line\): is called train.learning_rate now, which is set"
    ):
        load(["--train.rate=1", "--train.learning_rate=1"])


def test_a_renamed_recipe_is_found(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(table.RENAMED, "try", "demo")
    assert [layer.source for layer in recipe_layers(["try"])] == ["recipe demo"]
    assert "recipe try is called demo now" in caplog.text


def test_records_of_two_versions_compare_equal() -> None:
    old = {"prior.model.depth": 4, "prior.model.image_condition": "none", "prior.model.prior_condition": True}
    assert without_removed(old) == {"prior.model.depth": 4}
