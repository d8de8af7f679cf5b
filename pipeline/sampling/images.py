"""Find images and the class or caption of each: --sample.images FOLDER or FILE.csv. Nothing is decoded here.

A folder     images in it and below it. NAME.txt beside an image has its class or caption; without one, the model's
             classes are looked for in the names of its folder and of itself
DynamiCrafter's prompt folder    images, and one text file that is no sibling of any, with a line for each image sorted
             by name
A CSV file   columns image (relative to the file, absolute or s3://), and optionally caption, class
"""

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from ..errors import UserError
from ..storage.files import exists, is_remote, read_bytes, walk

COMPANIONS = frozenset({".txt", ".json", ".csv", ".md"})  # may lie beside images


class Candidate(NamedTuple):
    """A file that should be an image, and the class or caption given for it."""

    name: str  # relative to the folder, or as the CSV has it
    uri: str
    text: str | None = None  # a caption, or the name of a class
    label: str | None = None  # the class in a CSV, which must be one of the model's
    problem: str | None = None  # a reason to reject it without looking at it
    row: str = ""  # tells a CSV's rows of one image apart


def candidates(source: str) -> Iterator[Candidate]:
    """Find all candidates in a folder or CSV file. Raises UserError where there is neither."""
    if not exists(source):
        raise UserError(f"sample.images = {source}: no such folder or file; give a folder of images, or a CSV file")
    return from_csv(source) if source.lower().endswith(".csv") else from_folder(source)


def from_folder(folder: str) -> Iterator[Candidate]:
    """Find every file below the folder that may be an image, sorted by path."""
    files = {relative: uri for uri, relative, _ in walk(folder)}
    images = [name for name in files if is_candidate(name)]
    prompts: dict[str, str] = {}
    for inside, prompt_file in prompt_files(images, files).items():
        lines = [line.strip() for line in text_of(files[prompt_file]).splitlines() if line.strip()]
        there = [name for name in images if parent(name) == inside]
        prompts |= dict(zip(there, lines + [""] * len(there), strict=False))
    for name in images:
        sibling = str(PurePosixPath(name).with_suffix(".txt"))
        text, problem = None, None
        if name in prompts:
            text = prompts[name]
            problem = "has no line in the prompt file of its folder, which has fewer lines than images"
        elif sibling in files:
            text = text_of(files[sibling])
            problem = f"its prompt file {sibling} is empty; write a caption or class, or delete it"
        yield Candidate(name, files[name], text, problem=None if text else problem)


def is_candidate(name: str) -> bool:
    """Whether a file may be an image, by its name: not hidden, and no companion of images."""
    path = PurePosixPath(name)
    return path.suffix.lower() not in COMPANIONS and not any(part.startswith(".") for part in path.parts)


def prompt_files(images: list[str], files: dict[str, str]) -> dict[str, str]:
    """{folder of images: its one text file that is no image's sibling and no README}."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    found: dict[str, list[str]] = {parent(name): [] for name in images}
    for name in files:
        path = PurePosixPath(name)
        alone = path.suffix.lower() == ".txt" and str(path.with_suffix("")) not in stems
        if alone and parent(name) in found and not path.name.startswith((".", "README")):
            found[parent(name)].append(name)
    return {folder: names[0] for folder, names in found.items() if len(names) == 1}


def parent(name: str) -> str:
    """The folder of a relative path."""
    return str(PurePosixPath(name).parent)


def text_of(uri: str) -> str:
    """The text of a file, stripped."""
    return read_bytes(uri).decode("utf-8-sig", "replace").strip()


def read_rows(
    address: str, setting: str, required: tuple[str, ...], known: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    """Read the rows of a CSV file: the `known` columns, stripped, "" for a missing one.

    Raises UserError, which names `setting`, for a file without the required columns or with unknown ones.
    """
    reader = csv.DictReader(io.StringIO(text_of(address)))
    columns = [name.strip() for name in reader.fieldnames or []]
    if set(required) - set(columns) or set(columns) - set(known):
        others = ", ".join(name for name in known if name not in required)
        raise UserError(
            f"{setting}: has the columns {', '.join(columns) or 'none'}; expected {', '.join(required)}, "
            f"and perhaps {others}, in its first line"
        )
    reader.fieldnames = columns
    for row in reader:
        yield {name: (row.get(name) or "").strip() for name in known}


def beside(address: str, name: str) -> str:
    """The address of a file that the file at `address` names: absolute, s3://, or relative to its folder."""
    return name if not name or is_remote(name) or name.startswith("/") else address[: address.rfind("/") + 1] + name


def from_csv(address: str) -> Iterator[Candidate]:
    """Read the rows of a CSV file. Raises UserError without a column image, or with columns of other names."""
    rows = read_rows(address, f"sample.images = {address}", ("image",), ("image", "caption", "class"))
    for number, row in enumerate(rows, 2):
        name, text, label = row.values()
        problem = None if name else "names no image"
        key = f"{text}\0{label}"
        yield Candidate(name or f"line {number}", beside(address, name), text or None, label or None, problem, key)
