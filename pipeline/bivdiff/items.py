"""What to make: rows of a CSV file, and what each needs of its task. Nothing is decoded here.

Columns: video, prompt, and where the task takes them control, mask, source_prompt, negative_prompt, video_prompt (what the
video model is told, where that is not the prompt: Instruct Pix2Pix's is an instruction). Files are relative to the CSV
file, absolute or s3://; each is a video, a picture, or a folder of pictures that are its frames, sorted by name.
"""

import csv
import hashlib
import io
from pathlib import PurePosixPath
from typing import TypedDict

from ..errors import UserError
from ..sampling.images import COMPANIONS, text_of
from ..sampling.items import InputRejected, Rejection, image_key
from ..settings.bivdiff import CONTROLLED, BivdiffSettings
from ..storage.files import exists, is_remote, local, read_bytes, walk

FILES = ("video", "control", "mask")
COLUMNS = (*FILES, "prompt", "source_prompt", "negative_prompt", "video_prompt")


class BivdiffClip(TypedDict):
    """One clip to be made."""

    key: str  # safe as a file name; its noise is seeded by `source`
    source: str  # the row's own key: clips that differ in alpha only have the same
    name: str  # for people: the video or control, as in the file
    prompt: str
    source_prompt: str
    negative_prompt: str
    video_prompt: str
    video: str  # addresses, "" where there is none
    control: str
    mask: str
    alpha: float


def needed(bivdiff: BivdiffSettings) -> tuple[str, ...]:
    """The columns that every row must fill."""
    if bivdiff.framework == "vdm_only":
        return ("prompt",)
    if bivdiff.task in CONTROLLED:
        return ("prompt", "control") if bivdiff.control == "files" else ("prompt", "video")
    further = {"prompt_to_prompt": ("source_prompt",), "inpainting": ("mask",)}
    return ("prompt", "video", *further.get(bivdiff.task, ()))


def looked_at(bivdiff: BivdiffSettings) -> tuple[str, ...]:
    """The columns of files that the task reads; others are left alone."""
    control = bivdiff.task in CONTROLLED and bivdiff.control == "files"
    return ("video", *("control",) * control, *("mask",) * (bivdiff.task == "inpainting"))


def read_list(bivdiff: BivdiffSettings) -> tuple[list[list[BivdiffClip]], list[Rejection]]:
    """The clips of every row, one for each alpha, and the rows that cannot be used. Raises UserError for the file."""
    source = bivdiff.items
    if source is None:
        raise UserError("bivdiff.items = null: give a CSV file with the columns video and prompt, see docs/bivdiff.md")
    if not exists(source):
        raise UserError(f"bivdiff.items = {source}: no such file; give a CSV file, see docs/bivdiff.md")
    reader = csv.DictReader(io.StringIO(text_of(source)))
    columns = [name.strip() for name in reader.fieldnames or []]
    missing, unknown = set(needed(bivdiff)) - set(columns), set(columns) - set(COLUMNS)
    if missing or unknown:
        raise UserError(
            f"bivdiff.items = {source}: has the columns {', '.join(columns) or 'none'}; bivdiff.task {bivdiff.task} takes "
            f"{', '.join(needed(bivdiff))}, and perhaps others of {', '.join(COLUMNS)}"
        )
    reader.fieldnames = columns
    found: dict[str, list[BivdiffClip]] = {}
    rejected: list[Rejection] = []
    for number, row in enumerate(reader, 2):
        values = {name: (row.get(name) or "").strip() for name in COLUMNS}
        try:
            clips = clips_of(values, source.rpartition("/")[0] or ".", bivdiff)
            if clips[0]["source"] in found:
                raise InputRejected("asked for twice, in the same words")
            found[clips[0]["source"]] = clips
        except InputRejected as problem:
            rejected.append(
                Rejection(f"line {number}: {values['video'] or values['control'] or values['prompt']}", str(problem))
            )
    if not found:
        raise UserError(f"bivdiff.items = {source}: {_reason(rejected)}; see docs/bivdiff.md")
    return list(found.values()), rejected


def _reason(rejected: list[Rejection]) -> str:
    return f"none of its {len(rejected)} rows can be used ({rejected[0].reason})" if rejected else "it has no rows"


def clips_of(values: dict[str, str], folder: str, bivdiff: BivdiffSettings) -> list[BivdiffClip]:
    """The clips of one row. Raises InputRejected."""
    digest = hashlib.blake2b(digest_size=16)
    for name in needed(bivdiff):
        if not values[name]:
            raise InputRejected(f"names no {name}, which bivdiff.task {bivdiff.task} needs")
    addresses = {}
    for name in FILES:
        given = values[name] if name in looked_at(bivdiff) else ""
        addresses[name] = given if not given or is_remote(given) or given.startswith("/") else f"{folder}/{given}"
        if given:
            digest.update(f"{name}\0{content_hash(addresses[name], name)}\0".encode())
    for name in COLUMNS:
        digest.update(f"{name}\0{values[name]}\0".encode("utf-8", "surrogateescape"))
    name = values["video"] or values["control"] or values["prompt"]
    source = image_key(PurePosixPath(name).name, digest.digest())
    alphas = bivdiff.alphas
    return [
        BivdiffClip(
            key=source if len(alphas) == 1 else f"{source}-alpha-{alpha:g}",
            source=source,
            name=name,
            prompt=values["prompt"],
            source_prompt=values["source_prompt"],
            negative_prompt=values["negative_prompt"],
            video_prompt=values["video_prompt"] or values["prompt"],
            video=addresses["video"],
            control=addresses["control"],
            mask=addresses["mask"],
            alpha=alpha,
        )
        for alpha in alphas
    ]


def content_hash(address: str, column: str) -> str:
    """Of a file, or of all pictures in a folder. Raises InputRejected if there is nothing."""
    files = pictures(address) or [address]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            digest.update(hashlib.blake2b(read_bytes(file)).digest())
        except OSError as error:
            raise InputRejected(f"{column} {address}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()


def pictures(address: str) -> list[str]:
    """The files in a folder, sorted, that may be frames; [] where the address is a file or nothing."""
    if not is_remote(address) and not local(address).is_dir():
        return []
    return [
        uri
        for uri, relative, _ in walk(address)
        if "/" not in relative and not relative.startswith(".") and PurePosixPath(relative).suffix not in COMPANIONS
    ]
