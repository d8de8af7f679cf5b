"""Lists and files: what belongs together, and one line for what does not."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_bivdiff import FRAMES, SIZE, Folders, save_inputs, settings_of, write_list
from helpers.video_files import write_video
from PIL import Image

from pipeline.bivdiff.frames import Sources, canny, check_canny, outpainting_mask, read_sources
from pipeline.bivdiff.items import read_list
from pipeline.errors import UserError
from pipeline.sampling.items import InputRejected


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Files of clips; the models are names only, since none is loaded."""
    names: dict[str, Any] = {name: name for name in Folders._fields if name != "inputs"}
    return Folders(**names, inputs=save_inputs(tmp_path_factory.mktemp("files") / "inputs"))


def sources_of(folders: Folders, task: str, **row: str) -> Sources:
    settings = settings_of(folders, folders.inputs, task, write_list(folders, "row.csv", row))
    return read_sources(read_list(settings.bivdiff)[0][0][0], settings.bivdiff, settings.data)


def test_maps_in_a_folder_are_the_frames_of_the_video(folders: Folders) -> None:
    found = sources_of(folders, "controlnet")
    assert found.video is not None and found.control is not None
    assert len(found.video) == len(found.control) == FRAMES
    apart = np.abs(found.video[:, None].astype(int) - found.control[None]).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == list(range(FRAMES)), "each frame is nearest to its own map"
    assert apart.diagonal().max() < 4, "but for the video's compression"


def test_one_mask_is_for_all_frames_and_white_is_to_be_made(folders: Folders) -> None:
    mask = sources_of(folders, "inpainting").mask
    assert mask is not None and mask.shape[0] == FRAMES
    assert set(np.unique(mask)) == {0, 255}
    assert not mask[:, :, :15].any() and (mask[:, :, 17:] == 255).all()
    assert (mask == mask[0]).all()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"mask": "narrow.png"}, r"mask is 56 x 48, the video 64 x 48; give one size"),
        ({"mask": "short.mp4"}, r"mask has 5 frames, the video 6; give as many, or one"),
        ({"video": "short.mp4", "mask": "maps"}, r"mask has 6 frames, the video 5"),
        ({"video": "two.mp4"}, r"video .*two\.mp4: too_short: 2 frames, 3 needed"),
        ({"video": "broken.mp4"}, r"video .*broken\.mp4: \w+: "),
        ({"mask": "broken.png"}, r"mask .*broken\.png: not an image"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_files_that_do_not_belong_together_are_rejected(folders: Folders, row: dict[str, str], words: str) -> None:
    for name, frames in (("short", 5), ("two", 2)):
        write_video(folders.inputs / f"{name}.mp4", frames=frames, size=SIZE)
    for name in ("broken.mp4", "broken.png"):
        (folders.inputs / name).write_text("nothing of the kind")
    with pytest.raises(InputRejected, match=words) as problem:
        sources_of(folders, "inpainting", **row)
    assert "\n" not in str(problem.value)


def test_rows_that_cannot_be_used_are_counted_and_the_rest_goes_on(folders: Folders) -> None:
    rows = [{}, {"mask": ""}, {"video": "gone.mp4"}, {}, {"prompt": "other"}]
    settings = settings_of(folders, folders.inputs, "inpainting", write_list(folders, "rows.csv", *rows))
    clips, rejected = read_list(settings.bivdiff)
    assert [row[0]["prompt"] for row in clips] == ["a red dog", "other"]
    assert [(one.name.split(":")[0], one.reason.split(folders.inputs.name)[0]) for one in rejected] == [
        ("line 3", "names no mask, which bivdiff.task inpainting needs"),
        ("line 4", f"video {folders.inputs}/gone.mp4: cannot be read (No such file or directory)".split("inputs")[0]),
        ("line 5", "asked for twice, in the same words"),
    ]


def test_key_is_of_words_content_and_alpha(folders: Folders) -> None:
    def keys(**values: object) -> list[str]:
        items = write_list(folders, "keys.csv", {}, {"prompt": "other"})
        settings = settings_of(folders, folders.inputs, "inpainting", items, **values)
        return [clip["key"] for row in read_list(settings.bivdiff)[0] for clip in row]

    first = keys()
    assert len(set(first)) == 2 and first == keys() and all(key.startswith("source-") for key in first)
    assert keys(alpha=[0.5, 1]) == [f"{key}-alpha-{alpha}" for key in first for alpha in ("0.5", "1")]
    mask = folders.inputs / "mask.png"
    before = mask.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)
    try:
        assert not set(keys()) & set(first)
    finally:
        mask.write_bytes(before)


def test_list_of_other_columns_is_refused(folders: Folders, tmp_path: Path) -> None:
    items = tmp_path / "list.csv"
    items.write_text("video,prompt,colour\na.mp4,a dog,red\n")
    for task, words in (
        ("inpainting", "expected prompt, video, mask"),
        ("outpainting", "has the columns video, prompt, colour"),
    ):
        with pytest.raises(UserError, match=words):
            read_list(settings_of(folders, tmp_path, task, str(items)).bivdiff)
    with pytest.raises(UserError, match="no such file"):
        read_list(settings_of(folders, tmp_path, "inpainting", str(tmp_path / "none.csv")).bivdiff)


def test_canny_draws_the_edges_of_the_video(folders: Folders) -> None:
    pytest.importorskip("cv2")
    frame = np.zeros((1, 32, 32, 3), np.uint8)
    frame[:, 8:24, 8:24] = 200
    edges = canny(frame, 100, 200)
    assert edges.shape == frame.shape and edges.max() == 255
    assert edges[0, 16, 7:9].any() and not edges[0, 12:20, 12:20].any() and not edges[0, :6].any()
    settings = settings_of(
        folders, folders.inputs, "controlnet", write_list(folders, "row.csv", {"control": ""}), control="canny"
    )
    check_canny(settings.bivdiff)
    found = read_sources(read_list(settings.bivdiff)[0][0][0], settings.bivdiff, settings.data)
    assert found.video is not None and found.control is not None
    assert (found.control == canny(found.video, 100, 200)).all()


def test_canny_without_opencv_is_one_line(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    settings = settings_of(folders, folders.inputs, "controlnet", "list.csv", control="canny")
    with pytest.raises(UserError, match=r"bivdiff\.control = canny: .*pip install opencv-python-headless"):
        check_canny(settings.bivdiff)


def test_outpainting_makes_the_outer_quarters(folders: Folders) -> None:
    data = settings_of(folders, folders.inputs, "outpainting", "list.csv").data
    for outpaint, axis in (("sides", 2), ("top_and_bottom", 1)):
        profile = outpainting_mask(data, outpaint).mean(axis=tuple({0, 1, 2} - {axis}))
        assert profile.tolist() == [255.0] * 8 + [0.0] * 16 + [255.0] * 8
