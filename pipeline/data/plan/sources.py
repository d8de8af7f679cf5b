"""DATA SET -> VIDEOS: list the videos of a source, without opening one.

One function a source: it lists the videos in the source's own order, as `Video`s or, where there may be millions, as
Arrow tables with columns of Video's names (uri and video, and any of the others). A new source is one function here,
and its name in SOURCES and DataSettings.source. A listing or a table is enough: no request is made for a single file.
"""

import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import UserError
from ...schema import TEST, TRAIN
from ...settings import DataSettings
from ...storage.files import exists, list_files, read_bytes, resolve, walk
from .members import Member, member_uri
from .tables import BATCH, read_table

log = logging.getLogger("sources")

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on
READERS = 16  # files read at once: captions beside videos, tars
TAR_BUFFER = 2**16  # bytes read around a header: mostly the sample's other members and the next header too
MAX_CAPTION = 2**20


@dataclass(frozen=True)
class Video:
    """A video of a source; `split` is None where the source has no split of its own."""

    uri: str
    video: str  # path relative to the source's root; no two are alike
    size: int = -1  # bytes; 0: listed, but not there; -1: the source does not say
    split: str | None = None  # train | test
    label: str = ""
    caption: str = ""


Videos = Iterator[Video | pa.Table]


def ucf101(data: DataSettings) -> Iterator[Video]:
    """PATH/CLASS/v_CLASS_g01_c01.avi, split by trainlist0N.txt ("CLASS/FILE 1") and testlist0N.txt
    ("CLASS/FILE").

    The lists are expected in PATH/ucfTrainTestlist or data.annotations; captions.json beside them or in PATH
    is {"CLASS/FILE": "a caption"}. A listed file that is not there is planned too, and rejected later.
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


def webvid(data: DataSettings) -> Iterator[pa.Table]:
    """results_*.csv (videoid, name = caption, page_dir); files PATH/PAGE_DIR/VIDEOID.mp4 or PATH/VIDEOID.mp4.

    The csv is the only one in PATH or data.annotations. Listed videos that were never fetched are left out.
    """
    listed = [data.annotations] if data.annotations else list_files(data.path, ".csv")
    tables = [file for file in listed if data.annotations or PurePosixPath(file).name.startswith("results_")]
    if len(tables) != 1:
        problem = f"holds {len(tables)} files results_*.csv, expected one"
        raise UserError(f"data.path = {data.path}: {problem}; give it with data.annotations")
    found, absent = _listing(data.path), 0
    for rows in read_table(tables[0], {"videoid": pa.string(), "name": pa.string()}, {"page_dir": pa.string()}):
        name = pc.binary_join_element_wise(rows["videoid"], ".mp4", "")
        in_page = pc.index_in(pc.binary_join_element_wise(rows["page_dir"], name, "/"), found["video"])
        place = pc.coalesce(in_page, pc.index_in(name, found["video"]))
        there = pc.is_valid(place)
        table = found.take(place.filter(there)).append_column("caption", rows["name"].filter(there))
        absent += rows.num_rows - table.num_rows
        yield table
    if absent:
        log.warning("%d videos of %s are not in %s and are left out", absent, tables[0], data.path)


def msrvtt(data: DataSettings) -> Iterator[Video]:
    """MSR-VTT's json: `videos` (video_id, split, category) and `sentences` (video_id, caption); files VIDEO_ID.mp4.

    The json is data.annotations, or each *videodatainfo.json or MSRVTT_data.json in that folder or in PATH; the files
    lie anywhere below PATH. Its split `train` trains; `validate` and `test` are held out. Of a video's twenty captions
    the one with the lowest sen_id is taken (the first, if they have none), and `category` 9 becomes the label
    category09. Listed videos that were never fetched are left out.
    """
    listed: dict[str, dict[str, Any]] = {}
    captions: dict[str, tuple[int, str]] = {}
    place = data.annotations or data.path
    names = ("videodatainfo.json", "MSRVTT_data.json")
    files = [place] if place.endswith(".json") else [file for file in list_files(place) if file.endswith(names)]
    if not files:
        raise UserError(f"{place}: no *videodatainfo.json or MSRVTT_data.json there; give it with data.annotations")
    for path in files:
        described = _json(path, "expected MSR-VTT's json annotation")
        try:
            listed.update({video["video_id"]: video for video in described["videos"]})
            for number, sentence in enumerate(described["sentences"]):
                order = int(sentence.get("sen_id", number))
                first = captions.get(sentence["video_id"])
                if first is None or order < first[0]:
                    captions[sentence["video_id"]] = (order, " ".join(sentence["caption"].split()))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is not MSR-VTT's json ({error!r}); expected `videos` and `sentences`") from error
    found = {PurePosixPath(name).stem: (uri, name, size) for uri, name, size in walk(data.path) if _is_video(name)}
    for name, video in listed.items():
        if name in found:
            split = TRAIN if video.get("split") == "train" else TEST
            label = f"category{int(video['category']):02d}" if "category" in video else ""
            yield Video(*found[name], split, label, captions.get(name, (0, ""))[1])
    if absent := len(listed.keys() - found.keys()):
        log.warning("%d listed videos are not in %s and are left out", absent, data.path)


def folder(data: DataSettings) -> Iterator[Video]:
    """Every video file below PATH, by its extension or for want of one; hidden files are passed over.

    Captions come from VIDEO.txt or VIDEO.json ({"caption": ...}) beside the video.
    """
    files = [(uri, name, size) for uri, name, size in walk(data.path) if not _hidden(name)]
    addresses = {name: uri for uri, name, _ in files if name.endswith((".txt", ".json"))}
    videos = [file for file in files if _is_video(file[1]) or not os.path.splitext(file[1])[1]]
    with ThreadPoolExecutor(READERS) as pool:
        captions = pool.map(lambda file: _sibling_caption(file[1], addresses), videos)
        for (uri, name, size), caption in zip(videos, captions, strict=True):
            yield Video(uri, name, size, caption=caption)


def webdataset(data: DataSettings) -> Iterator[pa.Table]:
    """Tars of KEY.mp4 (or another video) with KEY.txt or KEY.json ({"caption": ...}), as video2dataset writes them.

    All *.tar below PATH. Only headers and captions are read, but of every tar; a tar that ends too early gives what
    comes before.
    """
    tars = [(uri, name) for uri, name, _ in walk(data.path) if name.endswith(".tar") and not _hidden(name)]
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda tar: _tar_videos(*tar), tars)


def manifest(data: DataSettings) -> Iterator[pa.Table]:
    """A CSV or Parquet table with a column `uri`, or a folder of Parquet parts: data.annotations, or PATH itself.

    A URI is absolute, s3://..., TAR#MEMBER@OFFSET+SIZE, or relative to PATH. Columns that may be there too: video (a
    name that stays the same wherever the files lie; otherwise the URI, relative to PATH where it lies below), caption,
    label, split (train | test, others are refused; empty: by data.holdout_fraction) and size. Without sizes a video
    that is replaced under the same name is not noticed.
    """
    path = data.annotations or data.path
    root = data.path.rstrip("/") if data.path != path else path.rpartition("/")[0]
    root = root if "://" in root else resolve(root or ".")[1]
    optional = dict.fromkeys(("video", "caption", "label", "split"), pa.string()) | {"size": pa.int64()}
    parts = [path] if path.lower().endswith((".csv", ".csv.gz", ".parquet")) else list_files(path, ".parquet")
    if not parts:
        raise UserError(f"{path}: is no .csv or .parquet file and no folder of .parquet; give it with data.annotations")
    for part in parts:
        for rows in read_table(part, {"uri": pa.string()}, optional):
            given = rows["uri"]
            if pc.any(pc.equal(given, "")).as_py():
                raise UserError(f"{part}: has a row without uri; delete it, or give its uri")
            absolute = pc.or_(pc.starts_with(given, "/"), pc.match_substring(given, "://"))
            uri = pc.if_else(absolute, given, pc.binary_join_element_wise(root, given, "/"))
            below = pc.starts_with(uri, f"{root}/")
            name = pc.if_else(below, pc.replace_substring_regex(uri, f"^{re.escape(root)}/", ""), uri)
            video = pc.coalesce(rows["video"], name)
            yield rows.set_column(0, "uri", uri).drop_columns("video").append_column("video", video)


OTHERWISE = "for any other folder set data.source folder"
SOURCES: dict[str, tuple[Callable[[DataSettings], Videos], str]] = {  # each with what it expects in data.path
    "ucf101": (ucf101, f"expected CLASS/v_CLASS_g01_c01.avi; {OTHERWISE}"),
    "webvid": (webvid, f"expected PAGE_DIR/VIDEOID.mp4 or VIDEOID.mp4; {OTHERWISE}"),
    "msrvtt": (msrvtt, f"expected videoN.mp4 somewhere below it; {OTHERWISE}"),
    "folder": (folder, "expected files such as .mp4, .mkv, .webm, .avi somewhere below it"),
    "webdataset": (webdataset, "expected NNNNN.tar with KEY.mp4 somewhere below it"),
    "manifest": (manifest, "expected a table with a row a video"),
}


def _listing(root: str) -> pa.Table:
    """uri, video and size of every video file below `root`."""
    files = ((name, size) for _, name, size in walk(root) if _is_video(name))
    schema = pa.schema({"video": pa.string(), "size": pa.int64()})
    parts = [schema.empty_table()]
    while part := list(islice(files, BATCH)):
        parts.append(pa.Table.from_arrays([list(column) for column in zip(*part, strict=True)], schema=schema))
    table = pa.concat_tables(parts)
    prefix = root.rstrip("/") if "://" in root else resolve(root)[1]
    return table.add_column(0, "uri", pc.binary_join_element_wise(prefix, table["video"], "/"))


def _tar_videos(uri: str, name: str) -> pa.Table:
    """The videos of the tar at `uri`, which is `name` in its source."""
    videos: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, str] = {}
    filesystem, inner = resolve(uri)
    with filesystem.open_input_file(inner) as source, io.BufferedReader(source, TAR_BUFFER) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    key, suffix = _sample_key(member.name)
                    if suffix in VIDEO_SUFFIXES:
                        videos[key] = member
                    elif suffix in (".txt", ".json") and member.isreg() and member.size < MAX_CAPTION:
                        content = tar.extractfile(member)
                        assert content is not None
                        _add_caption(texts, key, suffix, content.read())
        except tarfile.TarError as error:
            log.warning("%s: damaged (%s); %d videos before that", uri, error, len(videos))
    members = list(videos.items())
    return pa.table(
        {
            "uri": [member_uri(Member(uri, its.name, its.offset_data, its.size)) for _, its in members],
            "video": [f"{name}/{its.name}" for _, its in members],
            "size": pa.array([its.size for _, its in members], pa.int64()),
            "caption": pa.array([texts.get(key, "") for key, _ in members], pa.string()),
        }
    )


def _sample_key(name: str) -> tuple[str, str]:
    """WebDataset's key of a member, all up to the first dot of its file name, and its last suffix."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0], os.path.splitext(file)[1].lower()


def _add_caption(texts: dict[str, str], key: str, suffix: str, content: bytes) -> None:
    """Note the caption of a sample; a .txt counts before a .json."""
    if suffix == ".txt":
        texts[key] = content.decode("utf-8", "replace").strip()
    else:
        try:
            texts.setdefault(key, _caption_in(json.loads(content)))
        except ValueError:
            log.warning("%s.json: not valid JSON; its video has no caption", key)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _text(path: str, remedy: str) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; {remedy}") from error


def _captions(folder: str) -> dict[str, str]:
    path = f"{folder.rstrip('/')}/captions.json"
    captions = _json(path, "expected {'CLASS/FILE': 'caption'}") if exists(path) else {}
    if not isinstance(captions, dict) or any(not isinstance(value, str) for value in captions.values()):
        raise UserError(f"{path}: expected {{'CLASS/FILE': 'caption', ...}}")
    return captions


def _json(path: str, remedy: str) -> Any:
    try:
        return json.loads(_text(path, remedy))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error


def _sibling_caption(name: str, addresses: dict[str, str]) -> str:
    """The caption in VIDEO.txt or VIDEO.json, whatever the video's extension; "" if there is neither."""
    stem = os.path.splitext(name)[0]
    if address := addresses.get(f"{stem}.txt"):
        return _text(address, "captions are UTF-8 text").strip()
    if address := addresses.get(f"{stem}.json"):
        return _caption_in(_json(address, 'expected {"caption": ...}'))
    return ""


def _caption_in(described: Any) -> str:
    """The caption in {"caption": ...}, or a string itself; "" for anything else."""
    caption = described.get("caption", "") if isinstance(described, dict) else described
    return caption.strip() if isinstance(caption, str) else ""
