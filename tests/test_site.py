"""The reference shows docstrings as they stand in the source."""

from pathlib import Path
from types import ModuleType

import pytest
from helpers.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    return load_script(ROOT / "docs" / "docstrings.py")


def test_prose_stays_prose_and_formulas_keep_their_asterisks(docstrings: ModuleType) -> None:
    assert docstrings.as_markdown("Entries k*G to\n(k+1)*G, for t < 1, of `a * b`.") == (
        "Entries k\\*G to\n(k+1)\\*G, for t &lt; 1, of `a * b`."
    )


def test_columns_stay_columns(docstrings: ModuleType) -> None:
    text = "What is trained.\n\nbridge   eq. 17\n         with SAF, eq. 24\nprior    eq. 8\n\nThe end."
    shown = "What is trained.\n\n```text\nbridge   eq. 17\n         with SAF, eq. 24\nprior    eq. 8\n```\n\nThe end."
    assert docstrings.as_markdown(text) == shown


def test_lists_stay_lists(docstrings: ModuleType) -> None:
    assert docstrings.as_markdown("* a*b\n  and more\n* c") == "* a\\*b\n  and more\n* c"
