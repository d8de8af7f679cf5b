"""List the clips to make: rows of a CSV file, and the columns that each task needs. Nothing is decoded here.

Columns: video, prompt, and where the task takes them control, mask, source_prompt, negative_prompt, video_prompt (for
the video model, where it differs from the prompt: Instruct Pix2Pix's is an instruction). Files are relative to the CSV
file, absolute or s3://; each is a video, a picture, or a folder of pictures that are its frames, sorted by name.
"""

import hashlib
from pathlib import PurePosixPath
from typing import TypedDict, cast

from ..errors import UserError
from ..sampling.images import COMPANIONS, beside, read_rows
from ..sampling.items import InputRejected, Rejection, image_key
from ..settings.bivdiff import CONTROLLED, BivdiffSettings
from ..storage.files import exists, is_remote, local, read_bytes, walk

FILES = ("video", "control", "mask")
LIST_COLUMNS = (*FILES, "prompt", "source_prompt", "negative_prompt", "video_prompt")


class BivdiffClip(TypedDict):
    """One clip to be made."""

    key: str  # safe as a file name
    source: str  # the row's own key, which seeds the noise: clips of one row, which differ in alpha only, share it
    name: str  # of the video or control as in the file, for people
    prompt: str
    source_prompt: str
    negative_prompt: str
    video_prompt: str
    video: str  # addresses, "" for a missing file
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


def files_read(bivdiff: BivdiffSettings) -> set[str]:
    """The columns of files that the task reads; the others are left alone."""
    control = bivdiff.task in CONTROLLED and bivdiff.control == "files"
    return {"video", *["control"] * control, *["mask"] * (bivdiff.task == "inpainting")}


def read_list(bivdiff: BivdiffSettings) -> tuple[list[list[BivdiffClip]], list[Rejection]]:
    """List the clips of every row, one for each alpha, and the rejected rows. Raises UserError for the file."""
    source, setting = bivdiff.items, f"bivdiff.items = {bivdiff.items}"
    if source is None:
        raise UserError("bivdiff.items = null: give a CSV file with the columns video and prompt, see docs/bivdiff.md")
    if not exists(source):
        raise UserError(f"{setting}: no such file; give a CSV file, see docs/bivdiff.md")
    found: dict[str, list[BivdiffClip]] = {}
    rejected: list[Rejection] = []
    rows = read_rows(source, f"{setting}, bivdiff.task = {bivdiff.task}", needed(bivdiff), LIST_COLUMNS)
    for number, row in enumerate(rows, 2):
        name = row["video"] or row["control"] or row["prompt"]
        try:
            clips = clips_of(row, name, source, bivdiff)
            if clips[0]["source"] in found:
                raise InputRejected("asked for twice, in the same words")
            found[clips[0]["source"]] = clips
        except InputRejected as problem:
            rejected.append(Rejection(f"line {number}: {name}", str(problem)))
    if not found:
        reason = f"none of its {len(rejected)} rows can be used ({rejected[0].reason})" if rejected else "no rows"
        raise UserError(f"{setting}: {reason}; see docs/bivdiff.md")
    return list(found.values()), rejected


def clips_of(row: dict[str, str], name: str, address: str, bivdiff: BivdiffSettings) -> list[BivdiffClip]:
    """The clips of one row of the list at `address`. Raises InputRejected."""
    for column in needed(bivdiff):
        if not row[column]:
            raise InputRejected(f"names no {column}, which bivdiff.task {bivdiff.task} needs")
    digest = hashlib.blake2b(digest_size=16)
    files = dict.fromkeys(FILES, "")
    for column in FILES:
        if row[column] and column in files_read(bivdiff):
            files[column] = beside(address, row[column])
            digest.update(f"{column}\0{content_hash(files[column], column)}\0".encode())
    for column in LIST_COLUMNS:
        digest.update(f"{column}\0{row[column]}\0".encode("utf-8", "surrogateescape"))
    source = image_key(PurePosixPath(name).name, digest.digest())
    shared = row | files | {"video_prompt": row["video_prompt"] or row["prompt"], "source": source, "name": name}
    keys = {alpha: source if len(bivdiff.alphas) == 1 else f"{source}-alpha-{alpha:g}" for alpha in bivdiff.alphas}
    return [cast(BivdiffClip, {**shared, "key": key, "alpha": alpha}) for alpha, key in keys.items()]


def content_hash(address: str, column: str) -> str:
    """BLAKE2b of a file, or of all pictures in a folder. Raises InputRejected if there is nothing."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in pictures(address) or [address]:
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
