"""The pages for readers and contributors: they say nothing that is private, and their forms are well-formed."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "cluster" / "README.md", *ROOT.glob(".github/**/*.md")]
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
FIELDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_names_no_file_outside_the_repository(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text):
        target = (page.parent / link).resolve()
        assert target.is_relative_to(ROOT) and target.exists(), link
    assert "../shared" not in text


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_form_has_a_name_a_description_and_fields_that_can_be_filled_in(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"]
    assert {field["type"] for field in content["body"]} <= FIELDS
    named = [field for field in content["body"] if field["type"] != "markdown"]
    assert named and all(field["attributes"]["label"] for field in named)
    assert len({field["id"] for field in named}) == len(named)


def test_hooks_run_the_tools_of_the_environment() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "mypy"}
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    (paper,) = citation["references"]
    title = re.search(r"title *= \{(.*)\},\n", (ROOT / "README.md").read_text())
    assert title and title[1].replace("{", "").replace("}", "") == paper["title"]


def test_library_snippet_of_the_readme_has_at_most_six_lines() -> None:
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert snippet and len(snippet[1].splitlines()) <= 6
    compile(snippet[1], "README.md", "exec")
