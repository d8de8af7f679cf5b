"""What to sample: held-out clips of a cache, or images of a folder or CSV file. Plain data, nothing generated here.

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

from ..data.cache.manifest import Cache
from ..data.decode.crop import resize_and_crop
from ..errors import UserError
from ..schema import TEST, ManifestRow
from ..settings import VAE_DOWNSAMPLING
from ..storage.files import read_bytes
from .images import Candidate, candidates

log = logging.getLogger("sample")

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


class Rejection(NamedTuple):
    """A file or clip that could not be sampled, and why, in one line."""

    name: str
    reason: str


class InputRejected(Exception):
    """Input that cannot be used: an image, a video or a row of a list. The message is one line."""


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
    source: str, classes: list[str], count: int | None, max_pixels: int
) -> tuple[list[Item], list[Rejection]]:
    """The first `count` usable images of a folder or CSV file (see pipeline/sampling/images.py), and what was met that is none.

    The content decides what an image is, not the file's name. Raises UserError where there is no image at all.
    """
    items: list[Item] = []
    keys: set[str] = set()
    rejected: list[Rejection] = []
    for asked in candidates(source):
        if count is not None and len(items) == count:
            break
        try:
            item = image_item(asked, classes, max_pixels)
            if item["key"] in keys:
                raise InputRejected("asked for twice, in the same words")
            items.append(item)
            keys.add(item["key"])
        except InputRejected as problem:
            rejected.append(Rejection(asked.name, str(problem)))
    if not items:
        found = (
            f"; {len(rejected)} files there are none, such as {rejected[0].name}: {rejected[0].reason}"
            if rejected
            else ""
        )
        raise UserError(
            f"sample.images = {source}: holds no images{found}; give a folder or CSV of PNG, JPEG or WebP files"
        )
    return items, rejected


def image_item(asked: Candidate, classes: list[str], max_pixels: int) -> Item:
    """What is to be made of one image. Raises InputRejected, also for a caption or class that cannot be used."""
    if asked.problem:
        raise InputRejected(asked.problem)
    try:
        content = read_bytes(asked.uri)
    except OSError as error:
        raise InputRejected(f"cannot be read ({error.strerror or error})") from error
    check_image(content, max_pixels)
    text = asked.text or ""
    if asked.label is not None:
        label = class_of(asked.label, classes)
        if not label:
            raise InputRejected(
                f"class {asked.label} is unknown to the model, which has {', '.join(classes) or 'none'}"
            )
    else:
        label = image_class(PurePosixPath(asked.name), text, classes)
    caption = "" if class_of(text, classes) else text
    key = image_key(asked.name, content, asked.row)
    return Item(key=key, name=asked.name, label=label, caption=caption, uri=asked.uri, row=None)


def image_key(name: str, content: bytes, row: str = "") -> str:
    """Readable, safe as a file name, and another one for other content, another place or another row of a CSV."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(name).stem).strip("-")[:40] or "image"
    whole = (name + row).encode("utf-8", "surrogateescape") + content
    return f"{readable}-{hashlib.blake2b(whole, digest_size=6).hexdigest()}"


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


def check_image(content: bytes, max_pixels: int) -> tuple[int, int]:
    """(height, width) of a whole image, of a latent's pixel at least and `max_pixels` at most. Raises InputRejected."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if min(width, height) < VAE_DOWNSAMPLING:
                raise InputRejected(f"{width} x {height} pixels, less than {VAE_DOWNSAMPLING} on a side")
            if width * height > max_pixels:
                raise InputRejected(f"{width} x {height} pixels, more than data.max_pixels = {max_pixels}")
            image.load()
            return height, width
    except UnidentifiedImageError as error:
        raise InputRejected("not an image" if content else "an empty file") from error
    except UNREADABLE as error:
        raise InputRejected(f"cannot be decoded ({' '.join(str(error).split())[:200]})") from error


def open_image(content: bytes, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): upright, on white where transparent, short side resized, centre cropped. Raises InputRejected."""
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
        raise InputRejected(f"cannot be decoded ({' '.join(str(error).split())[:200]})") from error
