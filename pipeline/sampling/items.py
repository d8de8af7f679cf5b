"""What to sample: held-out clips of a cache, or a folder of images. Plain data, nothing generated here.

An item says where its picture comes from and what is asked of the model; its key seeds its noise and names its files.
"""

import hashlib
import io
import logging
import re
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import NamedTuple, TypedDict

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.clips import resize_and_crop
from pipeline.data.manifest import Cache
from pipeline.schema import TEST, ManifestRow
from pipeline.settings import UserError
from pipeline.storage import exists, read_bytes, walk

log = logging.getLogger("sample")

# what may lie beside images and is not meant as one
COMPANIONS = frozenset({".txt", ".json", ".csv", ".md"})
# what Pillow raises on damaged or hostile files
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, Image.DecompressionBombError)


class Item(TypedDict):
    """One picture to animate."""

    key: str  # safe as a file name; the clip's key, or the image's name and content
    name: str  # for people: the video or image, relative to its folder
    label: str  # a class name, "" if none is known
    caption: str  # "" if none is known
    uri: str  # the source video or the image
    row: ManifestRow | None  # the cached clip; None: `uri` is an image


class Refused(NamedTuple):
    """A file or clip that could not be sampled, and why, in one line."""

    name: str
    reason: str


class BadImage(Exception):
    """Bytes that are no usable image. The message is one line."""


def held_out_items(cache: Cache, count: int | None) -> list[Item]:
    """The first `count` held-out clips by key, one of each class in turn. Raises UserError if there are none."""
    rows = cache.select(TEST)
    if not rows:
        raise UserError(
            f"{cache.path}: holds no held-out clips to sample; raise data.holdout_fraction and cache again, "
            "or give a folder of images with --sample.images"
        )
    by_class: dict[str, list[ManifestRow]] = {}
    for row in rows:
        by_class.setdefault(row["label"], []).append(row)
    columns = [by_class[label] for label in sorted(by_class)]
    spread = [row for turn in zip_longest(*columns) for row in turn if row is not None]
    return [
        Item(key=row["key"], name=row["video"], label=row["label"], caption=row["caption"], uri=row["uri"], row=row)
        for row in spread[:count]
    ]


def image_items(
    folder: str, classes: list[str], count: int | None, max_pixels: int
) -> tuple[list[Item], list[Refused]]:
    """The first `count` images below `folder`, sorted by path, and the files on the way that are none.

    The content decides what an image is, not the file's name. The class is that of a sibling NAME.txt, of the parent
    folder or of the beginning of the name; other text in the sibling is the caption. Raises UserError.
    """
    if not exists(folder):
        raise UserError(f"sample.images = {folder}: no such folder; give a folder of images")
    files = {relative: uri for uri, relative, _ in walk(folder)}
    items: list[Item] = []
    refused: list[Refused] = []
    for name, uri in files.items():
        path = PurePosixPath(name)
        if path.suffix.lower() in COMPANIONS or any(part.startswith(".") for part in path.parts):
            continue
        if count is not None and len(items) == count:
            break
        content = read_bytes(uri)
        try:
            check_image(content, max_pixels)
        except BadImage as problem:
            refused.append(Refused(name, str(problem)))
            continue
        sibling = files.get(str(path.with_suffix(".txt")))
        text = read_bytes(sibling).decode("utf-8", "replace").strip() if sibling else ""
        label = image_class(path, text, classes)
        caption = "" if class_of(text, classes) else text
        items.append(Item(key=image_key(name, content), name=name, label=label, caption=caption, uri=uri, row=None))
    if not items:
        found = (
            f"; {len(refused)} files there are none, such as {refused[0].name}: {refused[0].reason}" if refused else ""
        )
        raise UserError(f"sample.images = {folder}: holds no images{found}; give a folder of PNG, JPEG or WebP files")
    return items, refused


def image_key(name: str, content: bytes) -> str:
    """Readable, safe as a file name, and another one for other content or another place."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(name).stem).strip("-")[:40] or "image"
    return f"{readable}-{hashlib.blake2b(name.encode('utf-8', 'surrogateescape') + content, digest_size=6).hexdigest()}"


def image_class(path: PurePosixPath, text: str, classes: list[str]) -> str:
    """The class of an image, by its sibling's `text`, its parent folder, or the beginning of its name; "" if unknown."""
    known = class_of(text, classes) or class_of(path.parent.name, classes)
    if known:
        return known
    stem = plain(path.stem.removeprefix("v_"))
    fitting = [name for name in classes if plain(name) and stem.startswith(plain(name))]
    return max(fitting, key=len, default="")


def class_of(text: str, classes: list[str]) -> str:
    """The class that `text` names, whatever its capitals, spaces and punctuation; "" if it names none."""
    names = {plain(name): name for name in classes}
    return names.get(plain(text), "") if plain(text) else ""


def plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def check_image(content: bytes, max_pixels: int) -> None:
    """Raise BadImage if the bytes are not those of a whole image of at most `max_pixels` pixels."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"{width} x {height} pixels, more than data.max_pixels = {max_pixels}")
            image.load()
    except UnidentifiedImageError as error:
        raise BadImage("not an image" if content else "an empty file") from error
    except UNREADABLE as error:
        raise BadImage(f"cannot be decoded ({' '.join(str(error).split())[:200]})") from error


def open_image(content: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): upright, on white where transparent, short side resized, centre cropped. Raises BadImage."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would clip them, not scale them
                values = np.asarray(image, dtype=np.float64)
                span = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
                image = Image.fromarray((values * (255.0 / span)).clip(0, 255).astype(np.uint8))
            if "A" in image.getbands() or "transparency" in image.info:
                over = image.convert("RGBA")
                image = Image.new("RGBA", over.size, "white")
                image.alpha_composite(over)
            return resize_and_crop(np.asarray(image.convert("RGB")), height, width)
    except UNREADABLE as error:
        raise BadImage(f"cannot be decoded ({' '.join(str(error).split())[:200]})") from error
