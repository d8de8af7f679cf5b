"""Samples as the page shows them: files turned into data: addresses, so that the page needs nothing beside it."""

import base64
from typing import Any

from ..storage.files import read_bytes, read_json

SHOWN = 32  # items on the page; the others are files in samples/
TYPES = {".png": "image/png", ".mp4": "video/mp4"}
COLUMNS = (  # member, heading, what it shows in words, for those who do not see it
    ("image.png", "image", "the input image"),
    ("source.mp4", "source", "the source video"),
    ("control.mp4", "control", "the control maps"),
    ("mask.mp4", "mask", "the mask, white where the picture was made"),
    ("frames.mp4", "frames", "the image model's frames, one by one"),
    ("prior.mp4", "prior", "the prior that the bridge starts from, decoded"),
    ("generated.mp4", "generated", "the generated clip"),
    ("true.mp4", "true", "the true clip"),
)


def data_address(address: str) -> str | None:
    """The file as a data: address; None if it is not there."""
    try:
        content = read_bytes(address)
    except FileNotFoundError:
        return None
    kind = TYPES["." + address.rsplit(".", 1)[-1]]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_items(folder: str, keys: list[str]) -> list[dict[str, Any]]:
    """The first SHOWN items of a samples folder: their records, with "tiles" to show side by side."""
    items = []
    for key in keys[:SHOWN]:
        try:
            record = read_json(f"{folder}/{key}.json")
        except FileNotFoundError:
            continue
        about = record["caption"] or record["label"] or record["name"]
        tiles = []
        for member, heading, words in COLUMNS:
            source = data_address(f"{folder}/{key}.{member}")
            if source:
                alt = f"{words}: {about}"
                tiles.append({"heading": heading, "source": source, "alt": alt, "video": member.endswith(".mp4")})
        items.append(record | {"about": about, "tiles": tiles})
    return items
