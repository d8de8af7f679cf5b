"""Build the documentation site into build/site: `make docs`.

    python docs/build_site.py

The site has the repository's own layout, so a link in a page works on the site as it does where the sources are
browsed: the pages named in mkdocs.yml are copied to build/docs under the paths that they have here, with every file
that one of them links to. The reference is one page for each folder of pipeline/, found by walking it; mkdocstrings
fills the pages from docstrings, without importing anything. A warning is an error: exit status 1.
"""

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from mkdocs.utils import write_file

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"
STAGED = ROOT / "build" / "docs"
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)")
Nav = list[dict[str, Any]]


def main() -> int:
    """Build the site; return the exit status."""
    logging.basicConfig(format="docs: %(message)s", level=logging.WARNING)
    shutil.rmtree(STAGED, ignore_errors=True)
    STAGED.mkdir(parents=True)
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True)
    nav: Nav = config.nav or []
    for page in pages_of(nav):
        stage(page)
    config.nav = [*nav, {"Reference": write_reference()}]
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    except Abort as aborted:
        print(f"docs: {aborted}", file=sys.stderr)
        return 1
    finally:
        config.plugins.on_shutdown()
    print(f"docs: {STAGED.parent / 'site' / 'index.html'}")
    return 0


def pages_of(nav: Nav) -> Iterator[str]:
    """Paths of the pages in mkdocs.yml's `nav`."""
    for entry in nav:
        for value in entry.values():
            if isinstance(value, list):
                yield from pages_of(value)
            else:
                yield value


def stage(page: str) -> None:
    """Copy a page, and the files beside it in the repository that it links to. Folders are left to the link check."""
    write_file((ROOT / page).read_bytes(), str(STAGED / page))
    if page.endswith(".md"):
        for link in LINK.findall((ROOT / page).read_text()):
            target = (ROOT / page).parent.joinpath(link).resolve()
            if target.is_file() and target.is_relative_to(ROOT) and target.suffix != ".md":
                write_file(target.read_bytes(), str(STAGED / target.relative_to(ROOT)))


def write_reference() -> Nav:
    """Write one page for each folder of the package that has modules; return their entries of the navigation."""
    nav: Nav = []
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(folder.glob("*.py"))]
        name = ".".join(folder.relative_to(ROOT).parts)
        text = f"# {name}\n\n" + "".join(f"::: {module.removesuffix('.__init__')}\n\n" for module in modules)
        # an __init__ shows its own docstring only: its modules follow on the same page
        text = text.replace(
            f"::: {name}\n\n", f"::: {name}\n    options: {{members: false, show_root_heading: false}}\n\n"
        )
        write_file(text.encode(), str(STAGED / "reference" / f"{name}.md"))
        nav.append({name: f"reference/{name}.md"})
    return nav


if __name__ == "__main__":
    sys.exit(main())
