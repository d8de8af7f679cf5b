"""List the items to sample: held-out clips of a cache, or images of a folder or CSV file. Nothing is generated here.

An item has the address of a picture, and a class or caption for the model. Its key seeds its noise and names its files.
"""

import hashlib
import io
import re
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypedDict

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..data.cache.manifest import Cache
from ..data.decode.crop import resize_and_crop
from ..errors import UserError
from ..schema import TEST, ManifestRow
from ..settings import VAE_DOWNSAMPLING
from ..storage.files import read_bytes
from .images import Candidate, candidates

# Pillow raises these on damaged or hostile files
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, Image.DecompressionBombError)


class Item(TypedDict):
    """One picture to animate."""

    key: str  # safe as a file name; the clip's key, or the image's name and content
    name: str  # of the video or image, relative to its folder, for people
    label: str  # a class name, "" if none is known
    caption: str  # "" if none is known
    uri: str  # the source video or the image
    row: ManifestRow | None  # the cached clip; None: `uri` is an image


class Rejection(NamedTuple):
    """Input that cannot be used, and the reason in one line."""

    name: str
    reason: str


Record = dict[str, Any]  # of a clip, as in KEY.json
Files = dict[str, bytes]  # of a clip: KEY.NAME for each name
BatchResult = tuple[list[tuple[Record, Files]], list[Rejection]]


class InputRejected(Exception):
    """Input that cannot be used: an image, a video or a row of a list. The message is one line."""


def held_out_items(cache: Cache, count: int | None) -> list[Item]:
    """List the first `count` held-out clips by key, one of each class in turn. Raises UserError if there are none."""
    by_class: dict[str, list[ManifestRow]] = {}
    for row in cache.select(TEST):
        by_class.setdefault(row["label"], []).append(row)
    if not by_class:
        raise UserError(
            f"{cache.path}: holds no held-out clips to sample; raise data.holdout_fraction and cache again, "
            "or give a folder of images with --sample.images"
        )
    turns = zip_longest(*(by_class[label] for label in sorted(by_class)))
    spread = [row for turn in turns for row in turn if row is not None]
    return [
        Item(key=row["key"], name=row["video"], label=row["label"], caption=row["caption"], uri=row["uri"], row=row)
        for row in spread[:count]
    ]


def image_items(
    source: str, classes: list[str], count: int | None, max_pixels: int
) -> tuple[list[Item], list[Rejection]]:
    """List the first `count` usable images of a folder or CSV file (see images.py), and the files rejected before them.

    The content decides whether a file is an image, not its name. Raises UserError where there is no image at all.
    """
    items: dict[str, Item] = {}
    rejected: list[Rejection] = []
    for candidate in candidates(source):
        if count is not None and len(items) == count:
            break
        try:
            item = image_item(candidate, classes, max_pixels)
            if item["key"] in items:
                raise InputRejected("asked for twice, in the same words")
            items[item["key"]] = item
        except InputRejected as problem:
            rejected.append(Rejection(candidate.name, str(problem)))
    if not items:
        found = ""
        if rejected:
            found = f"; {len(rejected)} files were rejected, such as {rejected[0].name}: {rejected[0].reason}"
        raise UserError(f"sample.images = {source}: holds no images{found}; give a folder or CSV of PNG, JPEG or WebP")
    return list(items.values()), rejected


def image_item(candidate: Candidate, classes: list[str], max_pixels: int) -> Item:
    """Make the item of one image. Raises InputRejected, also for a caption or class that cannot be used."""
    name, uri, text, asked, problem, row = candidate
    if problem:
        raise InputRejected(problem)
    try:
        content = read_bytes(uri)
    except OSError as error:
        raise InputRejected(f"cannot be read ({error.strerror or error})") from error
    check_image(content, max_pixels)
    label = class_of(asked, classes) if asked else image_class(PurePosixPath(name), text or "", classes)
    if asked and not label:
        raise InputRejected(f"class {asked} is unknown to the model, which has {', '.join(classes) or 'none'}")
    caption = "" if class_of(text or "", classes) else text or ""
    return Item(key=image_key(name, content, row), name=name, label=label, caption=caption, uri=uri, row=None)


def image_key(name: str, content: bytes, row: str = "") -> str:
    """Make a readable key, safe as a file name; other content, another place or row of a CSV gives another key."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(name).stem).strip("-")[:40] or "image"
    whole = (name + row).encode("utf-8", "surrogateescape") + content
    return f"{readable}-{hashlib.blake2b(whole, digest_size=6).hexdigest()}"


def image_class(path: PurePosixPath, text: str, classes: list[str]) -> str:
    """Find the class of an image by its sibling's `text`, its folder, or the start of its name; "" if unknown."""
    stem = plain(path.stem.removeprefix("v_"))
    fitting = [name for name in classes if plain(name) and stem.startswith(plain(name))]
    return class_of(text, classes) or class_of(path.parent.name, classes) or max(fitting, key=len, default="")


def class_of(text: str, classes: list[str]) -> str:
    """Find the class that `text` names, in any capitals, spaces and punctuation; "" if it names no class."""
    return {plain(name): name for name in classes}.get(plain(text), "") if plain(text) else ""


def plain(text: str) -> str:
    """Keep the letters and digits of `text`, in lower case."""
    return "".join(character for character in text.casefold() if character.isalnum())


def check_image(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Check that an image is whole and not too small or large; return (height, width). Raises InputRejected.

    It must have a pixel of the latent at least, and `max_pixels` at most.
    """
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
    """Decode an image to uint8 (height, width, 3): upright, on white where transparent, resized and centre cropped.

    Raises InputRejected.
    """
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
