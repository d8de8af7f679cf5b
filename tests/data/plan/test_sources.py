"""Each source in its true layout on disk, and one line for each way to get it wrong."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pipeline.data.decode.fetch import DecodeFailure, local_file
from pipeline.data.plan.clips import plan_clips
from pipeline.errors import UserError
from pipeline.schema import PlannedClip
from pipeline.settings import DataSettings, load


def settings(path: Path, source: str, **changes: Any) -> DataSettings:
    data = load(["--recipe", "demo"])[0].data
    return data.model_copy(update={"stride": 3, "path": str(path), "source": source, "annotations": None, **changes})


def plan(path: Path, source: str, **changes: Any) -> list[PlannedClip]:
    return list(plan_clips(settings(path, source, **changes)))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    names = [f"{label}/v_{label}_g0{g}_c01.avi" for label in ("Archery", "Yo Yo".replace(" ", "")) for g in (1, 2, 3)]
    touch(tmp_path, *names, "Archery/notes.txt")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{name} 1\r\n" for name in names if "g01" not in name))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for name in names if "g01" in name))
    (lists / "captions.json").write_text(json.dumps({names[0]: "an archer"}))
    return tmp_path


def test_ucf101_follows_the_official_lists(ucf: Path) -> None:
    clips = plan(ucf, "ucf101")
    assert [clip["video"] for clip in clips] == sorted(clip["video"] for clip in clips)
    assert {clip["video"] for clip in clips if clip["split"] == "test"} == {
        "Archery/v_Archery_g01_c01.avi",
        "YoYo/v_YoYo_g01_c01.avi",
    }
    assert {clip["label"] for clip in clips} == {"Archery", "YoYo"} and len(clips) == 6
    assert clips[0]["caption"] == "an archer" and clips[1]["caption"] == ""
    assert Path(clips[0]["uri"]).is_absolute() and clips[0]["size"] == len(clips[0]["video"])


def test_ucf101_lists_elsewhere_and_several_clips_a_video(ucf: Path, tmp_path: Path) -> None:
    (ucf / "ucfTrainTestlist").rename(tmp_path / "lists")
    clips = plan(ucf, "ucf101", annotations=str(tmp_path / "lists"), clips_per_video=2, max_videos=3)
    assert [(clip["ordinal"], clip["clips"]) for clip in clips] == [(0, 2), (1, 2)] * 3


def test_ucf101_plans_a_listed_video_that_is_gone(ucf: Path) -> None:
    (ucf / "Archery/v_Archery_g02_c01.avi").unlink()
    clips = plan(ucf, "ucf101")
    assert len(clips) == 6 and [clip["size"] for clip in clips].count(0) == 1


def test_ucf101_errors_name_the_remedy(ucf: Path) -> None:
    with pytest.raises(UserError, match=r"trainlist02.txt: no such file; .*data.annotations"):
        plan(ucf, "ucf101", split_list=2)
    for path in ucf.glob("*/*.avi"):
        path.rename(ucf / path.name)
    with pytest.raises(UserError, match="none of its 6 videos is in the lists"):
        plan(ucf, "ucf101")
    for path in ucf.glob("*.avi"):
        path.unlink()
    with pytest.raises(UserError, match="holds no videos"):
        plan(ucf, "ucf101")


def test_webvid_with_and_without_page_folders(tmp_path: Path) -> None:
    (tmp_path / "results_2M_val.csv").write_text(
        'videoid,contentUrl,duration,page_dir,name\n1,u,PT1S,000001_000050,"A cat, asleep"\n'
        "2,u,PT1S,,Dog\n3,u,PT1S,x,Gone\n"
    )
    touch(tmp_path, "000001_000050/1.mp4", "2.mp4", "9.mp4")
    clips = plan(tmp_path, "webvid", holdout_fraction=0.5)
    assert [(clip["video"], clip["caption"]) for clip in clips] == [
        ("000001_000050/1.mp4", "A cat, asleep"),
        ("2.mp4", "Dog"),
    ]
    assert sorted(clip["split"] for clip in clips) == ["test", "train"]


def test_webvid_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 files results_\*.csv, expected one; .*data.annotations"):
        plan(tmp_path, "webvid")
    (tmp_path / "results_a.csv").write_text("id,caption\n1,x\n")
    with pytest.raises(UserError, match="no column name and videoid"):
        plan(tmp_path, "webvid")


def test_folder_takes_videos_by_extension_or_for_want_of_one(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.MKV", "a.mp4", "no_extension", "a.png", ".hidden.mp4", ".git/y.mp4", "-dash 'q' 視頻.webm")
    (tmp_path / "a.txt").write_text(" a tree \n")
    (tmp_path / "b/x.json").write_text('{"caption": "two men", "fps": 3}')
    captions = {clip["video"]: clip["caption"] for clip in plan(tmp_path, "folder")}
    assert captions == {"a.mp4": "a tree", "b/x.MKV": "two men", "no_extension": "", "-dash 'q' 視頻.webm": ""}


def test_folder_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        plan(tmp_path / "gone", "folder")
    touch(tmp_path, "a.png")
    with pytest.raises(UserError, match="holds no videos"):
        plan(tmp_path, "folder")


def test_held_out_share_is_stable_when_videos_come(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.mp4" for index in range(300)))
    before = {clip["video"]: clip["split"] for clip in plan(tmp_path, "folder", holdout_fraction=0.2)}
    assert 30 < list(before.values()).count("test") < 90
    touch(tmp_path, *(f"new{index}.mp4" for index in range(100)))
    after = {clip["video"]: clip["split"] for clip in plan(tmp_path, "folder", holdout_fraction=0.2)}
    assert before.items() <= after.items()


@pytest.mark.parametrize(("fraction", "tests"), [(0.0, 0), (0.0001, 1), (0.9999, 1), (1.0, 2)])
def test_two_videos_give_one_of_each_split(tmp_path: Path, fraction: float, tests: int) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    splits = [clip["split"] for clip in plan(tmp_path, "folder", holdout_fraction=fraction)]
    assert splits.count("test") == tests


def msrvtt(*videos: dict[str, Any], captions: int = 2) -> str:
    """The annotation of `videos`, with captions in an order that is not that of their sen_id."""
    sentences = [
        {"caption": f"{video['video_id']}  caption {number}", "video_id": video["video_id"], "sen_id": number}
        for number in reversed(range(captions))
        for video in videos
    ]
    return json.dumps({"info": {}, "videos": videos, "sentences": sentences})


def test_msrvtt_from_its_two_files_of_annotation(tmp_path: Path) -> None:
    touch(tmp_path, "TrainValVideo/video0.mp4", "TrainValVideo/video1.mp4", "TestVideo/video7010.mp4", "x/video9.mp4")
    listed = [("video0", "train", 9), ("video1", "validate", 0), ("video2", "train", 3), ("video7010", "test", 19)]
    rows = [{"video_id": name, "split": split, "category": category} for name, split, category in listed]
    (tmp_path / "train_val_videodatainfo.json").write_text(msrvtt(*rows[:3]))
    (tmp_path / "test_videodatainfo.json").write_text(msrvtt(*rows[3:]))
    clips = plan(tmp_path, "msrvtt")
    assert {clip["video"]: (clip["split"], clip["label"], clip["caption"]) for clip in clips} == {
        "TrainValVideo/video0.mp4": ("train", "category09", "video0 caption 0"),
        "TrainValVideo/video1.mp4": ("test", "category00", "video1 caption 0"),
        "TestVideo/video7010.mp4": ("test", "category19", "video7010 caption 0"),
    }
    only = plan(tmp_path, "msrvtt", annotations=str(tmp_path / "test_videodatainfo.json"))
    assert [clip["video"] for clip in only] == ["TestVideo/video7010.mp4"]


def test_msrvtt_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*videodatainfo.json .*data.annotations"):
        plan(tmp_path, "msrvtt")
    (tmp_path / "test_videodatainfo.json").write_text('{"videos": [{"id": 1}]}')
    with pytest.raises(UserError, match=r"is not MSR-VTT's json .*expected `videos` and `sentences`"):
        plan(tmp_path, "msrvtt")
    (tmp_path / "test_videodatainfo.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        plan(tmp_path, "msrvtt")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_webdataset_tars_give_each_video_its_byte_range_and_caption(tmp_path: Path) -> None:
    first = {"000000000.mp4": b"one" * 900, "000000000.txt": b"a cat\n", "000000000.json": b'{"caption": "not this"}'}
    first |= {"000000001.mp4": b"two" * 70_000, "000000001.json": b'{"caption": "a dog", "url": "x"}'}
    second = {"000010000.json": b'{"caption": "before its video"}', "000010000.webm": b"three", "000010001.jpg": b"no"}
    write_tar(tmp_path / "00000.tar", first)
    write_tar(tmp_path / "part #2" / "00001.tar", second)
    touch(tmp_path, "00000.parquet", "00000_stats.json")
    clips = plan(tmp_path, "webdataset")
    assert [(clip["video"], clip["size"], clip["caption"]) for clip in clips] == [
        ("00000.tar/000000000.mp4", 2700, "a cat"),
        ("00000.tar/000000001.mp4", 210_000, "a dog"),
        ("part #2/00001.tar/000010000.webm", 5, "before its video"),
    ]
    contents = [first["000000000.mp4"], first["000000001.mp4"], second["000010000.webm"]]
    for clip, content in zip(clips, contents, strict=True):
        with local_file(clip["uri"]) as path:
            assert path.read_bytes() == content and path.suffix == Path(clip["video"]).suffix


def test_a_tar_that_was_cut_off_gives_what_came_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "0.tar", {"a.mp4": b"a" * 1000, "b.mp4": b"b" * 100_000, "c.mp4": b"c"})
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[:50_000])
    clips = plan(tmp_path, "webdataset")
    assert [clip["video"] for clip in clips] == ["0.tar/a.mp4", "0.tar/b.mp4"] and "0.tar: damaged" in caplog.text
    with pytest.raises(DecodeFailure, match="truncated: the tar ends after"), local_file(clips[1]["uri"]):
        pass
    (tmp_path / "0.tar").unlink()
    with pytest.raises(DecodeFailure, match="missing"), local_file(clips[0]["uri"]):
        pass


MANIFEST = {
    "uri": ["a.mp4", "s3://bucket/b.mp4", "/elsewhere/c.mp4", "d/d.mp4"],
    "caption": ["A cat,\nasleep", "NA", None, "null"],
    "split": ["test", "train", None, "train"],
    "size": [5, None, 7, 8],
    "duration": [1.5, 2.5, 3.5, 4.5],
}


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "folder of parquet"])
def test_manifest_takes_its_rows_at_their_word(tmp_path: Path, kind: str) -> None:
    table = pa.table(MANIFEST)
    path = tmp_path / f"list.{kind}"
    if kind.startswith("csv"):
        with pa.CompressedOutputStream(str(path), "gzip") if kind == "csv.gz" else open(path, "wb") as stream:
            pa_csv.write_csv(table, stream)
    elif kind == "parquet":
        pq.write_table(table, path)
    else:
        path = tmp_path / "parts"
        path.mkdir()
        for index in range(4):
            pq.write_table(table.slice(index, 1), path / f"{index}.parquet")
    clips = plan(tmp_path, "manifest", annotations=str(path), holdout_fraction=0.0)
    root = str(tmp_path)
    assert [(clip["uri"], clip["video"], clip["size"]) for clip in clips] == [
        (f"{root}/a.mp4", "a.mp4", 5),
        ("s3://bucket/b.mp4", "s3://bucket/b.mp4", -1),
        ("/elsewhere/c.mp4", "/elsewhere/c.mp4", 7),
        (f"{root}/d/d.mp4", "d/d.mp4", 8),
    ]
    assert [clip["split"] for clip in clips] == ["test", "train", "train", "train"]
    assert [clip["caption"] for clip in clips] == ["A cat,\nasleep", "NA", "", "null"]


def test_manifest_alone_names_of_its_own_and_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list.csv"
    path.write_text("video,uri,label\nx,s3://one/x.mp4,A\ny,y.mp4,B\nx,s3://two/x.mp4,C\n")
    clips = plan(path, "manifest")
    assert [(clip["video"], clip["uri"], clip["label"]) for clip in clips] == [
        ("x", "s3://one/x.mp4", "A"),
        ("y", f"{tmp_path}/y.mp4", "B"),
    ]
    assert "1 videos of" in caplog.text and "come more than once" in caplog.text


def test_manifest_errors_name_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    for content, expected in [
        ("url\nx\n", "has no column uri; expected a table with uri"),
        ("uri,split\nx,validation\n", "split = 'validation': expected train or test"),
        ("uri,size\nx,large\n", r"list.csv: cannot be read .*large"),
        ("uri,size\n,3\n", "has a row without uri"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=expected):
            plan(path, "manifest")
    with pytest.raises(UserError, match=r"is no .csv or .parquet file.*data.annotations"):
        plan(tmp_path, "manifest")
    with pytest.raises(UserError, match=r"gone.parquet: no such file"):
        plan(tmp_path, "manifest", annotations=str(tmp_path / "gone.parquet"))
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"bad.parquet: cannot be read"):
        plan(tmp_path, "manifest", annotations=str(tmp_path / "bad.parquet"))


def test_training_videos_are_mirrored_right_after_themselves(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,split\na.mp4,train\nb.mp4,test\nc.mp4,train\n")
    clips = plan(tmp_path / "list.csv", "manifest", flip=True, clips_per_video=2)
    assert [(clip["video"][0], clip["ordinal"], clip["flip"]) for clip in clips] == [
        *[("a", 0, False), ("a", 0, True), ("a", 1, False), ("a", 1, True)],
        *[("b", 0, False), ("b", 1, False)],
        *[("c", 0, False), ("c", 0, True), ("c", 1, False), ("c", 1, True)],
    ]
    assert {clip["clips"] for clip in clips} == {2}
    assert len(plan(tmp_path / "list.csv", "manifest", flip=True, max_videos=1)) == 2
