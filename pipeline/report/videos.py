"""Samples as the page shows them: files turned into data: addresses, so that the page is one file."""

import base64
import mimetypes
from typing import Any

from ..storage.files import read_bytes, read_json

SHOWN = 32  # items on the page; the others are files in samples/
GRID_COLUMNS = (  # member, heading, description for those who do not see it
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
    return f"data:{mimetypes.guess_type(address)[0]};base64,{base64.b64encode(content).decode()}"


def read_items(folder: str, summary: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The records of the first SHOWN items in `folder`, with "tiles" to show side by side; [] without a summary."""
    items = []
    for key in summary["items"][:SHOWN] if summary else []:
        try:
            record = read_json(f"{folder}/{key}.json")
        except FileNotFoundError:
            continue
        about = record["caption"] or record["label"] or record["name"]
        tiles = [
            {"heading": heading, "source": source, "alt": f"{words}: {about}", "video": member.endswith(".mp4")}
            for member, heading, words in GRID_COLUMNS
            if (source := data_address(f"{folder}/{key}.{member}"))
        ]
        items.append(record | {"about": about, "tiles": tiles})
    return items
