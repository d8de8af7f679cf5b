"""Where images and what is asked of them come from: --sample.images FOLDER or FILE.csv. Nothing is decoded here.

A folder     images in it and below it. What is asked of one says its sibling NAME.txt (a class or a caption); without one, the
             model's classes are looked for in its folder's name and its own
DynamiCrafter's prompt folder    images, and one text file that is no sibling of any, with a line for each image sorted by name
A CSV file   columns image (relative to the file, absolute or s3://), and optionally caption, class
"""

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from ..errors import UserError
from ..storage.files import exists, is_remote, read_bytes, walk

# what may lie beside images and is not meant as one
COMPANIONS = frozenset({".txt", ".json", ".csv", ".md"})
COLUMNS = ("image", "caption", "class")


class Candidate(NamedTuple):
    """A file that should be an image, and what is asked of it."""

    name: str  # relative to the folder, or as the CSV has it
    uri: str
    text: str | None = None  # a caption, or the name of a class; None: nothing is said
    label: str | None = None  # the class that a CSV names, which must be one of the model's
    problem: str | None = None  # why it cannot be used, known without looking at it
    row: str = ""  # what tells a CSV's rows of one image apart


def candidates(source: str) -> Iterator[Candidate]:
    """All of a folder, or of a CSV file. Raises UserError where there is neither."""
    if not exists(source):
        raise UserError(f"sample.images = {source}: no such folder or file; give a folder of images, or a CSV file")
    return from_csv(source) if source.lower().endswith(".csv") else from_folder(source)


def from_folder(folder: str) -> Iterator[Candidate]:
    """Every file below the folder that may be an image, sorted by path."""
    files = {relative: uri for uri, relative, _ in walk(folder)}
    images = [name for name in files if is_candidate(name)]
    prompts: dict[str, str | None] = {}
    for name, prompt_file in prompt_files(images, files).items():
        prompts |= lines_of(files[prompt_file], [one for one in images if parent(one) == name])
    for name in images:
        sibling = str(PurePosixPath(name).with_suffix(".txt"))
        if name in prompts:
            text = prompts[name]
            problem = (
                None if text else "has no line in the prompt file of its folder, which has fewer lines than images"
            )
            yield Candidate(name, files[name], text, problem=problem)
        elif sibling in files:
            text = text_of(files[sibling])
            problem = None if text else f"its prompt file {sibling} is empty; write a caption or class, or delete it"
            yield Candidate(name, files[name], text, problem=problem)
        else:
            yield Candidate(name, files[name])


def is_candidate(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() not in COMPANIONS and not any(part.startswith(".") for part in path.parts)


def prompt_files(images: list[str], files: dict[str, str]) -> dict[str, str]:
    """{folder: its one text file that is no image's sibling}, for folders with images; a README is none."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    folders = {parent(name) for name in images}
    found: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        alone = path.suffix.lower() == ".txt" and str(path.with_suffix("")) not in stems
        if alone and parent(name) in folders and not path.name.startswith((".", "README")):
            found.setdefault(parent(name), []).append(name)
    return {folder: names[0] for folder, names in found.items() if len(names) == 1}


def lines_of(uri: str, images: list[str]) -> dict[str, str | None]:
    """The prompt of each image of a folder: the file's lines that are not empty, in the order of the images' names."""
    lines: list[str | None] = [line.strip() for line in text_of(uri).splitlines() if line.strip()]
    return dict(zip(images, lines + [None] * (len(images) - len(lines)), strict=False))


def parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


def text_of(uri: str) -> str:
    return read_bytes(uri).decode("utf-8-sig", "replace").strip()


def from_csv(address: str) -> Iterator[Candidate]:
    """The rows of a CSV file. Raises UserError for one without a column image, or with columns of other names."""
    reader = csv.DictReader(io.StringIO(text_of(address)))
    columns = [name.strip() for name in reader.fieldnames or []]
    if "image" not in columns or set(columns) - set(COLUMNS):
        raise UserError(
            f"sample.images = {address}: has the columns {', '.join(columns) or 'none'}; expected image, and perhaps "
            "caption and class, in its first line"
        )
    reader.fieldnames = columns
    folder = address.rsplit("/", 1)[0] if "/" in address else "."
    for number, row in enumerate(reader, 2):
        name = (row["image"] or "").strip()
        uri = name if is_remote(name) or name.startswith("/") else f"{folder}/{name}"
        text, label = (row.get(key, "") or "" for key in ("caption", "class"))
        problem = None if name else "names no image"
        asked = text.strip() or None, label.strip() or None
        yield Candidate(name or f"line {number}", uri, *asked, problem, f"{asked[0] or ''}\0{asked[1] or ''}")
