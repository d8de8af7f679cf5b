"""Every recipe resolves alone; a recipe applies after those it builds on, and each applies once."""

import re
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.settings import RECIPES, load, recipes
from pipeline.settings.layers import read_recipe, recipe_layers

DOCUMENTED = ("ucf101-", "latte-", "webvid-")  # experiments of the papers
# A recipe, and the line that named its bases before recipes could
STACKS = {
    "ablation": ["demo", "ablation"],
    "shipped": ["demo", "shipped"],
    "demo-videos": ["demo", "demo-videos"],
    "teacher": ["demo", "teacher"],
    "webvid-videocrafter-100k": ["webvid-videocrafter", "webvid-videocrafter-100k"],
    "webvid-dynamicrafter": ["webvid-videocrafter", "webvid-dynamicrafter"],
    "webvid-dynamicrafter-cil": ["webvid-videocrafter", "webvid-dynamicrafter", "webvid-dynamicrafter-cil"],
}


def order(*names: str) -> list[str]:
    return [layer.source.removeprefix("recipe ") for layer in recipe_layers(names)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in place of jobs/recipes."""
    monkeypatch.setattr("pipeline.settings.layers.RECIPES", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", recipes())
def test_recipe_resolves_alone(name: str) -> None:
    load(["--recipe", name])


@pytest.mark.parametrize("name", STACKS)
def test_a_base_named_as_well_changes_nothing(name: str) -> None:
    stack = [word for each in STACKS[name] for word in ("--recipe", each)]
    assert load(stack)[0] == load(["--recipe", name])[0]


@pytest.mark.parametrize("name", recipes())
def test_header_says_what_the_recipe_is_for_and_how_to_run_it(name: str) -> None:
    header = re.match(r"(?:#.*\n)+", (RECIPES / f"{name}.yaml").read_text())
    assert header and (f"--recipe {name}" in header[0] or name == "demo")
    assert "On top of" not in header[0]


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith(DOCUMENTED)])
def test_header_says_what_it_takes_and_what_to_expect(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    header = " ".join(line.removeprefix("#") for line in text.split("run:")[0].splitlines())
    for said in (f"--recipe {name} ", "GPUs", "clips each|clips", "learning rate", "steps", "ampled|samples|sampling"):
        assert re.search(said, header), said
    assert re.search("Published|expect|Expected", header)


def test_bases_apply_first_and_once(folder: Path) -> None:
    (folder / "root.yaml").write_text("train:\n  steps: 1\n")
    (folder / "left.yaml").write_text("base: root\ntrain:\n  steps: 2\n")
    (folder / "right.yaml").write_text("base: root\n")
    (folder / "top.yaml").write_text("base: [left, right]\n")
    assert order("top") == order("left", "top", "left") == ["root", "left", "right", "top"]
    assert read_recipe(folder / "left.yaml") == (["root"], {"train": {"steps": 2}})


def test_a_circle_of_bases_is_refused_in_one_line(folder: Path) -> None:
    (folder / "a.yaml").write_text("base: b\n")
    (folder / "b.yaml").write_text("base: c\n")
    (folder / "c.yaml").write_text("base: b\n")
    with pytest.raises(UserError, match=r"^recipe b builds on itself \(b -> c -> b\); take `base` out of one of them$"):
        recipe_layers(["a"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: nothing\n", "base = nothing: no such recipe; choose one of one"),
        ("base: ray_config\n", "base = ray_config: no such recipe"),
        ("base: {demo: 1}\n", "expected the name of a recipe, or a list of names"),
        ("base: [1]\n", "expected the name of a recipe, or a list of names"),
        ("train: 5\n", "expected sections with keys"),
    ],
)
def test_a_recipe_with_a_wrong_base_or_section_is_refused_with_its_file(folder: Path, text: str, expected: str) -> None:
    (folder / "one.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        recipe_layers(["one"])
    assert "one.yaml: " in str(error.value) and expected in str(error.value) and "\n" not in str(error.value)


def test_base_is_for_recipes_only(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("base: demo\n")
    with pytest.raises(UserError, match=r"mine.yaml: base = .*demo.*: only recipes build on others"):
        load(["--config", str(config)])
