"""Each source in its true layout on disk, and one line for each way to get it wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.data.plan import plan_clips
from pipeline.schema import PlannedClip
from pipeline.settings import DataSettings, UserError


def settings(path: Path, source: str, **changes: Any) -> DataSettings:
    data = load(["--recipe", "demo"])[0].data
    return data.model_copy(update={"path": str(path), "source": source, "annotations": None, **changes})


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
        'videoid,contentUrl,duration,page_dir,name\n1,u,PT1S,000001_000050,"A cat, asleep"\n2,u,PT1S,,Dog\n3,u,PT1S,x,Gone\n'
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
