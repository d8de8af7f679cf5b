"""FOLDER -> PLANNED CLIPS: which clips a data set asks for, without opening a video.

One function a source: it lists the videos as `Video`s in the source's own order. Adding a source is one
function here, and its name in DataSettings.source.
"""

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath

from pipeline.schema import TEST, TRAIN, PlannedClip
from pipeline.settings import DataSettings, UserError
from pipeline.storage import exists, list_files, read_bytes, read_json, walk

log = logging.getLogger("sources")

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on


@dataclass(frozen=True)
class Video:
    """A video of a source; `split` is None where the source has no split of its own."""

    uri: str
    video: str  # path relative to the source's root
    size: int  # bytes; 0: listed, but not there
    split: str | None = None
    label: str = ""
    caption: str = ""


def plan_clips(data: DataSettings) -> Iterator[PlannedClip]:
    """Every clip that the source gives under these settings, in the source's order. Raises UserError."""
    if not exists(data.path):
        raise UserError(f"data.path = {data.path}: no such folder; give the folder of the videos with --data.path")
    videos = list(islice(SOURCES[data.source](data), data.max_videos))
    if not videos:
        raise UserError(
            f"data.path = {data.path}: holds no videos for data.source = {data.source}; {EXPECTED[data.source]}"
        )
    for video in _held_out(videos, data.holdout_fraction):
        assert video.split is not None
        for ordinal in range(data.clips_per_video):
            yield PlannedClip(
                uri=video.uri,
                video=video.video,
                size=video.size,
                split=video.split,
                label=video.label,
                caption=video.caption,
                ordinal=ordinal,
                clips=data.clips_per_video,
            )


def ucf101(data: DataSettings) -> Iterator[Video]:
    """PATH/CLASS/v_CLASS_g01_c01.avi, split by trainlist0N.txt ("CLASS/FILE 1") and testlist0N.txt
    ("CLASS/FILE").

    The lists are expected in PATH/ucfTrainTestlist or data.annotations; captions.json beside them or in PATH
    is {"CLASS/FILE": "a caption"}. A listed file that is not there is planned too, and becomes a reject.
    """
    folder = data.annotations or f"{data.path.rstrip('/')}/ucfTrainTestlist"
    listed: dict[str, str] = {}
    for split in (TRAIN, TEST):
        name = f"{folder}/{split}list{data.split_list:02d}.txt"
        lines = _text(name, "data.source = ucf101 needs it: set data.annotations, or data.source folder").splitlines()
        listed.update({line.split()[0].lstrip("/"): split for line in lines if line.strip()})
    captions = _captions(folder) or _captions(data.path)
    found = {name: (uri, size) for uri, name, size in walk(data.path) if _is_video(name)}
    if found and not found.keys() & listed.keys():
        example = next(iter(listed), "nothing")
        raise UserError(
            f"data.path = {data.path}: none of its {len(found)} videos is in the lists of {folder}, which "
            f"name for example {example}; give the folder of the class folders, or set data.source folder"
        )
    if unlisted := len(found.keys() - listed.keys()):
        log.warning("%d of the %d videos in %s are in no list and are left out", unlisted, len(found), data.path)
    for name in sorted(listed) if found else ():
        uri, size = found.get(name, (f"{data.path.rstrip('/')}/{name}", 0))
        yield Video(uri, name, size, listed[name], PurePosixPath(name).parts[0], captions.get(name, ""))


def webvid(data: DataSettings) -> Iterator[Video]:
    """results_*.csv (videoid, name = caption, page_dir); files PATH/PAGE_DIR/VIDEOID.mp4 or PATH/VIDEOID.mp4.

    The csv is the only one in PATH or data.annotations. Listed videos that were never fetched are left out.
    """
    path = data.annotations or _only_csv(data.path)
    rows = csv.DictReader(io.StringIO(_text(path, "give the csv file with data.annotations")))
    if missing := {"videoid", "name"} - set(rows.fieldnames or ()):
        raise UserError(f"{path}: has no column {' and '.join(sorted(missing))}; expected videoid, name, page_dir")
    found = {name: (uri, size) for uri, name, size in walk(data.path) if _is_video(name)}
    absent = 0
    for row in rows:
        name = f"{row['videoid']}.mp4"
        if row.get("page_dir") and f"{row['page_dir']}/{name}" in found:
            name = f"{row['page_dir']}/{name}"
        if name in found:
            yield Video(*found[name][:1], name, found[name][1], caption=row["name"])
        else:
            absent += 1
    if absent:
        log.warning("%d videos of %s are not in %s and are left out", absent, path, data.path)


def folder(data: DataSettings) -> Iterator[Video]:
    """Every video file below PATH, by its extension or for want of one; hidden files are passed over.

    Captions come from VIDEO.txt or VIDEO.json ({"caption": ...}) beside the video.
    """
    files = [(uri, name, size) for uri, name, size in walk(data.path) if not _hidden(name)]
    addresses = {name: uri for uri, name, _ in files}
    for uri, name, size in files:
        if _is_video(name) or not PurePosixPath(name).suffix:
            yield Video(uri, name, size, caption=_sibling_caption(name, addresses))


SOURCES: dict[str, Callable[[DataSettings], Iterator[Video]]] = {
    "ucf101": ucf101,
    "webvid": webvid,
    "folder": folder,
}
EXPECTED = {
    "ucf101": "expected CLASS/v_CLASS_g01_c01.avi; for any other folder set data.source folder",
    "webvid": "expected PAGE_DIR/VIDEOID.mp4 or VIDEOID.mp4; for any other folder set data.source folder",
    "folder": "expected files such as .mp4, .mkv, .webm, .avi somewhere below it",
}


def _held_out(videos: list[Video], fraction: float) -> Iterator[Video]:
    """Give the videos without a split one, by a hash of their path: `fraction` of them become test videos.

    It depends on neither order nor number, so videos added later move none. As long as there are two, at
    least one is held out (if fraction > 0) and at least one is not (if fraction < 1).
    """
    free = {video.video: _unit_hash(video.video) for video in videos if video.split is None}
    held = {name for name, value in free.items() if value < fraction}
    if len(free) >= 2 and not held and fraction > 0:
        held = {min(free, key=lambda name: free[name])}
    if len(free) >= 2 and len(held) == len(free) and fraction < 1:
        held.remove(max(free, key=lambda name: free[name]))
    for video in videos:
        if video.split is None:
            video = replace(video, split=TEST if video.video in held else TRAIN)
        yield video


def _unit_hash(name: str) -> float:
    """A number in [0, 1) from `name`."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _text(path: str, remedy: str) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; {remedy}") from error


def _captions(folder: str) -> dict[str, str]:
    path = f"{folder.rstrip('/')}/captions.json"
    if not exists(path):
        return {}
    try:
        captions = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected {{'CLASS/FILE': 'caption'}}") from error
    if not isinstance(captions, dict) or any(not isinstance(value, str) for value in captions.values()):
        raise UserError(f"{path}: expected {{'CLASS/FILE': 'caption', ...}}")
    return captions


def _only_csv(folder: str) -> str:
    found = [path for path in list_files(folder, ".csv") if re.match(r"results_.*\.csv$", path.rsplit("/", 1)[-1])]
    if len(found) != 1:
        raise UserError(
            f"data.path = {folder}: holds {len(found)} files results_*.csv, expected one; give it with data.annotations"
        )
    return found[0]


def _sibling_caption(name: str, addresses: dict[str, str]) -> str:
    """The caption in VIDEO.txt or VIDEO.json, whatever the video's extension; "" if there is neither."""
    stem = name.removesuffix(PurePosixPath(name).suffix)
    if address := addresses.get(f"{stem}.txt"):
        return _text(address, "captions are UTF-8 text").strip()
    if address := addresses.get(f"{stem}.json"):
        try:
            described = json.loads(_text(address, "captions are JSON"))
        except json.JSONDecodeError as error:
            raise UserError(f'{address}: not valid JSON ({error}); expected {{"caption": ...}}') from error
        caption = described.get("caption", "") if isinstance(described, dict) else described
        return caption.strip() if isinstance(caption, str) else ""
    return ""
