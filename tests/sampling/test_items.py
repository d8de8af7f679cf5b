"""Which pictures are sampled, and what is said of files that are none."""

import io
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from pipeline.data.cache.manifest import open_cache
from pipeline.errors import UserError
from pipeline.sampling.items import InputRejected, held_out_items, image_class, image_items, image_key, open_image
from pipeline.settings import Settings

CLASSES = ["Apply", "ApplyLipstick", "Slide Left"]
BIG = 10**8


def png(colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


def test_held_out_clips_take_turns_over_classes(tiny_run: Settings) -> None:
    cache = open_cache(tiny_run.cache_path)
    every = held_out_items(cache, None)
    assert {item["row"]["split"] for item in every if item["row"]} == {"test"}
    classes = {item["label"] for item in every}
    assert len({item["label"] for item in every[: len(classes)]}) == len(classes)
    assert held_out_items(cache, 3) == every[:3]


def test_content_decides_what_an_image_is(tmp_path: Path) -> None:
    (tmp_path / "no_suffix").write_bytes(png())
    (tmp_path / "really_text.png").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "torn.png").write_bytes(png(size=(400, 300))[:200])
    (tmp_path / "no_suffix.txt").write_text("a red wall")
    (tmp_path / "unasked.png").write_bytes(png())
    (tmp_path / "unasked.txt").write_text("\n")
    (tmp_path / "dot.png").write_bytes(png(size=(40, 7)))
    items, rejected = image_items(str(tmp_path), CLASSES, None, BIG)
    assert [(item["name"], item["label"], item["caption"]) for item in items] == [("no_suffix", "", "a red wall")]
    assert {one.name: one.reason.split(" (")[0] for one in rejected} == {
        "empty.jpg": "an empty file",
        "really_text.png": "not an image",
        "torn.png": "cannot be decoded",
        "unasked.png": "its prompt file unasked.txt is empty; write a caption or class, or delete it",
        "dot.png": "40 x 7 pixels, less than 8 on a side",
    }


def test_prompt_folder_as_dynamicrafter_has_it(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c.png"):
        (tmp_path / name).write_bytes(png())
    (tmp_path / "README.txt").write_text("not for them")
    (tmp_path / "test_prompts.txt").write_text("a red wall falls\n\n slide left \n")
    items, rejected = image_items(str(tmp_path), CLASSES, None, BIG)
    assert [(item["name"], item["label"], item["caption"]) for item in items] == [
        ("a.png", "", "a red wall falls"),
        ("b.png", "Slide Left", ""),
    ]
    assert [one.name for one in rejected] == ["c.png"] and "has no line in the prompt file" in rejected[0].reason


def test_csv_of_images_captions_and_classes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    table = tmp_path / "asked.csv"
    table.write_text(
        "image,caption,class\npictures/a.png,it moves,\npictures/a.png,,slide left\npictures/a.png,it moves,\n"
        f"{tmp_path}/pictures/a.png,,\ngone.png,,\npictures/a.png,,Jump\n,what,\n"
    )
    items, rejected = image_items(str(table), CLASSES, None, BIG)
    assert [(item["label"], item["caption"]) for item in items] == [("", "it moves"), ("Slide Left", ""), ("", "")]
    assert len({item["key"] for item in items}) == 3
    assert [(one.name, one.reason) for one in rejected] == [
        ("pictures/a.png", "asked for twice, in the same words"),
        ("gone.png", "cannot be read (No such file or directory)"),
        ("pictures/a.png", "class Jump is unknown to the model, which has Apply, ApplyLipstick, Slide Left"),
        ("line 8", "names no image"),
    ]
    table.write_text("file,caption\na.png,x\n")
    with pytest.raises(UserError, match="has the columns file, caption; expected image"):
        image_items(str(table), CLASSES, None, BIG)


def test_class_from_sibling_folder_or_name() -> None:
    assert image_class(PurePosixPath("a/x.png"), "slide_left", CLASSES) == "Slide Left"
    assert image_class(PurePosixPath("slide-left/x.png"), "some caption", CLASSES) == "Slide Left"
    assert image_class(PurePosixPath("v_ApplyLipstick_g01_c01.png"), "", CLASSES) == "ApplyLipstick"
    assert image_class(PurePosixPath("holiday.png"), "", CLASSES) == ""


def test_keys_are_safe_and_tell_content_and_place_apart() -> None:
    keys = {image_key("a/ü?/../x.png", b"1"), image_key("b/x.png", b"1"), image_key("b/x.png", b"2")}
    assert len(keys) == 3
    assert all(key.replace("-", "").isalnum() for key in keys)


def test_unusable_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        image_items(str(tmp_path / "gone"), [], None, BIG)
    with pytest.raises(UserError, match="holds no images"):
        image_items(str(tmp_path), [], None, BIG)
    (tmp_path / "notes").write_text("x")
    with pytest.raises(UserError, match="notes: not an image"):
        image_items(str(tmp_path), [], None, BIG)
    (tmp_path / "large.png").write_bytes(png(size=(40, 30)))
    with pytest.raises(UserError, match=r"40 x 30 pixels, more than data.max_pixels = 1000"):
        image_items(str(tmp_path), [], None, 1000)


def test_image_is_upright_on_white_and_cropped() -> None:
    stream = io.BytesIO()
    picture = Image.new("RGB", (40, 20), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 20, 20))  # red on the left
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: red at the top
    picture.save(stream, "PNG", exif=exif)
    upright = open_image(stream.getvalue(), 32, 32)
    assert upright.shape == (32, 32, 3)
    assert upright[2, 16].tolist() == [255, 0, 0]
    assert upright[-3, 16].tolist() == [0, 0, 255]
    assert open_image(png((9, 9, 9, 0), mode="RGBA"), 8, 8).min() == 255
    sixteen = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(sixteen, "PNG")
    assert open_image(sixteen.getvalue(), 8, 8)[0, 0].tolist() == [127, 127, 127]
    with pytest.raises(InputRejected):
        open_image(b"\x89PNG\r\n", 8, 8)
