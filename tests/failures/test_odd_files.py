"""Files of every odd kind at once: each becomes a clip or is rejected for the right reason.

The files that the test makes itself, and where ../shared/clips lies beside the repository, the real ones there.
"""

import csv
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pyarrow as pa
from helpers.video_files import write_video

from pipeline.data.decode import stage
from pipeline.data.decode.stage import decode_clips
from pipeline.schema import PLAN_SCHEMA
from pipeline.settings import ROOT, load

REAL = ROOT.parent / "shared" / "clips"
CACHED = None
UNDECODABLE: set[str | None] = {"unreadable", "no_video", "no_frames", "corrupt", "truncated"}
KNOWN: dict[str, set[str | None]] = {  # PyAV by itself raises at frames that the encoder dropped, and gives two shapes
    "nasty/d__xvid_drop_frames_tail30.avi": {CACHED},
    "nasty/d__xvid_drop_frames_every4.avi": {CACHED},
    "nasty/d__resolution_change.ts": {"resolution_change"},
}


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        output.mux(stream.encode(silence))
        output.mux(stream.encode())
    return path


def made(folder: Path) -> dict[Path, set[str | None]]:
    """Files, and what may become of each."""
    whole = write_video(folder / "whole.mp4", 60, container_options={"movflags": "faststart"})
    content = whole.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 50)
    (folder / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    (folder / "no_end.mp4").write_bytes(write_video(folder / "end.mp4", 50).read_bytes()[:-2000])
    return {
        whole: {CACHED},
        write_video(folder / "one_frame.mp4", 1): {"too_short"},
        write_video(folder / "tiny.mp4", 50, size=(2, 2)): {CACHED},
        write_video(folder / "huge.mkv", 50, size=(8, 4440)): {"too_large"},
        write_video(folder / "turned.mp4", 50, rotation=90): {CACHED},
        write_sound(folder / "sound.mp4"): {"no_video"},
        folder / "empty.mp4": {"unreadable"},
        folder / "text.mp4": {"unreadable"},
        folder / "cut.mp4": {"truncated"},
        folder / "no_end.mp4": {"unreadable"},
        folder / "gone.mp4": {"missing"},
    }


def real() -> dict[Path, set[str | None]]:
    """The files of the index, of the ordinary ones every fourth, and what its columns say may become of each."""
    if not (REAL / "index.csv").is_file():
        return {}
    with open(REAL / "index.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    ordinary = [row for row in rows if row["file"].startswith("ordinary/")][::4]
    nasty = [row for row in rows if row["file"].startswith("nasty/")]
    return {REAL / row["file"]: expected(row) for row in ordinary + nasty}


def expected(row: dict[str, str]) -> set[str | None]:
    if row["file"].startswith("ordinary/"):
        return {CACHED}
    if row["file"] in KNOWN:
        return KNOWN[row["file"]]
    if not row["pyav181"].startswith("ok"):
        return UNDECODABLE
    frames = int(row["pyav181"].split("n=")[1].split()[0])
    if frames < 16:
        return {"too_short", "no_frames", "truncated"}
    return {CACHED, "corrupt", "truncated", "resolution_change"}  # a damaged file may be decodable up to the damage


def surprises(files: dict[Path, set[str | None]], max_pixels: int) -> list[str]:
    """The files that became something else, after all went through one worker's decoder."""
    row = {"split": "train", "label": "", "caption": "", "ordinal": 0, "clips": 1, "flip": False}
    plan = [
        {**row, "uri": str(path), "video": path.name, "size": path.stat().st_size if path.exists() else 0}
        for path in files
    ]
    data = load(["--recipe", "demo", "--data.stride", "3", "--data.max_pixels", str(max_pixels)])[0].data
    batch = pa.Table.from_pylist(plan, schema=PLAN_SCHEMA)
    outcomes = [part.drop_columns(["frames"]).to_pylist()[0] for part in decode_clips(batch, data)]
    assert [outcome["uri"] for outcome in outcomes] == [str(path) for path in files], "one outcome a file, in order"
    return [
        f"{outcome['video']}: {outcome['reason']} ({outcome['detail']}), expected one of {kinds}"
        for outcome, kinds in zip(outcomes, files.values(), strict=True)
        if outcome["reason"] not in kinds
    ]


def test_every_odd_file_becomes_a_clip_or_is_rejected_with_its_reason(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    assert surprises(made(tmp_path), max_pixels=35_000) == []
    assert surprises(real(), max_pixels=35_389_440) == []
    stage.isolated_decoder.close()
    assert set(psutil.Process().children(recursive=True)) <= set(before), "no child process is left"
