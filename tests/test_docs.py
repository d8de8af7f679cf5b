"""docs/mathematics.md says what holds each equation, docs/failures.md what tries each failure: it must be there."""

import ast
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import ROOT, load, recipes

PAGE = (ROOT / "docs" / "mathematics.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]
FAILURES = [line for line in (ROOT / "docs" / "failures.md").read_text().splitlines() if line.startswith("| ")][1:]
PLACES = (ROOT, ROOT / "pipeline", ROOT / "tests")
GOLDEN = ROOT / "tests" / "golden"
# of the papers: what must have a row
STATED = ["eq. 8", "eq. 12", "eq. 15", "eq. 16", "eq. 17", "eq. 24", "Proposition 2", "Proposition 3", "Table 4"]
STATED += ["Table 5", "Figure 6", "Figures 7 and 8", "TimeNoise", "CIL Proposition 1", "Appendix B"]
# settings that choose among things by name
CHOICES = {"sde_first_order", "ode_first_order", "ode_second_order", "stochastic_heun", "dbim", "ddim"}


def file_of(name: str) -> Path | None:
    return next((place / name for place in PLACES if (place / name).is_file()), None)


@functools.cache
def defined(path: Path) -> set[str]:
    """Names that a file defines at its top, and the members of its classes as Class.member."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return names


def is_setting(name: str) -> bool:
    tree: Any = load([])[0].model_dump()
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_row_names_what_is_there(row: str) -> None:
    file: Path | None = None
    for name in re.findall("`([^`]+)`", row):
        if name.endswith(".py"):
            file = file_of(name)
            assert file, f"{name}: no such file"
        elif name.startswith("test_") or (file and name in defined(file)):
            assert file and name in defined(file), f"{name} is not in {file}"
        else:
            assert is_setting(name) or name in recipes() or name in CHOICES, f"{name}: nothing of that name in {file}"


@pytest.mark.parametrize("row", FAILURES, ids=lambda row: row.split("|")[1].strip()[:50])
def test_failure_is_tried_by_a_test(row: str) -> None:
    named = re.findall("`([^`]+)`", row.rsplit("|", 2)[1])
    assert named
    for name in named:
        path, _, test = name.rpartition("::") if "::" in name or not name.endswith(".py") else (name, "", "")
        file = file_of(path or "tests/failures/test_training.py")
        assert file and (not test or test.split("[")[0] in defined(file)), name


@pytest.mark.parametrize("name", STATED)
def test_statement_of_the_papers_has_a_row(name: str) -> None:
    assert any(re.search(rf"{re.escape(name)}(?!\d)", row.split("|")[1]) for row in ROWS)


def test_every_row_of_mathematics_has_a_test() -> None:
    named = [row for row in ROWS if "/" in row.split("|")[2] and ".py`" in row.split("|")[2]]
    assert len(named) > 25
    assert [row for row in named if "test_" not in row.rsplit("|", 2)[1]] == []


def test_every_recipe_of_the_papers_is_on_the_page() -> None:
    of_papers = {name for name in recipes() if name.startswith(("ucf101-", "latte-", "webvid-"))}
    assert {name for name in of_papers if f"`{name}`" not in PAGE} == set() and len(of_papers) > 10


def test_every_file_of_the_authors_numbers_is_read_by_a_test() -> None:
    tests = "".join(path.read_text() for path in GOLDEN.glob("test_*.py"))
    stems = {path.stem.removesuffix("_seed0") for path in GOLDEN.glob("*") if path.suffix in (".json", ".safetensors")}
    assert len(stems) >= 10
    assert {stem for stem in stems if stem not in tests} == set()
