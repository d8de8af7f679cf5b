"""Let the reference show docstrings as they stand: an extension of griffe, which mkdocstrings loads (see mkdocs.yml).

Docstrings are prose for people who read the source. Markdown would run columns together and take the asterisks of
formulas for emphasis; paragraphs laid out in columns become blocks of text here, and asterisks are escaped.
"""

import re
from typing import Any

from griffe import Extension, GriffeLoader, Object

LAID_OUT = re.compile(r"^ {2,}\S|\S {2,}\S")  # a line that is indented, or has columns
ITEM = re.compile(r"^([*-]|\d+\.) ")


class AsWritten(Extension):
    """Turn every docstring into Markdown that shows what it says."""

    def on_object(self, *, obj: Object, loader: GriffeLoader, **kwargs: Any) -> None:
        """Adapt the docstring of one object."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Markdown of a docstring."""
    return "\n\n".join(_paragraph(part.splitlines()) for part in re.split(r"\n\s*\n", text.strip("\n")))


def _paragraph(lines: list[str]) -> str:
    """A paragraph; from its first line that is laid out on, it is a block of text."""
    if any(ITEM.match(line) for line in lines):
        return "\n".join(_escaped(line) for line in lines)
    first = next((index for index, line in enumerate(lines) if LAID_OUT.search(line)), len(lines))
    prose = "\n".join(_escaped(line) for line in lines[:first])
    block = "```text\n" + "\n".join(lines[first:]) + "\n```" if lines[first:] else ""
    return f"{prose}\n\n{block}".strip("\n")


def _escaped(line: str) -> str:
    """The line with its asterisks and angle brackets outside `code` escaped; an item keeps its own asterisk."""
    item = ITEM.match(line)
    start = item.end() if item else 0
    parts = re.split(r"(`[^`]*`)", line[start:])
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;") for part in parts[::2]]
    return line[:start] + "".join(parts)
