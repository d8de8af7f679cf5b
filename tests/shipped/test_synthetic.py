"""The synthetic data set has UCF-101's layout, motion as the class names it, and the same bytes for the same seed."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.shipped.synthetic import CLASSES, make_dataset, random_scene, render


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "set"
    make_dataset(str(folder), videos=16, seed=3, frames=12, test_share=0.5)
    return folder


def test_layout_is_ucf101s_and_lists_name_every_file_once(dataset: Path) -> None:
    lists = dataset / "ucfTrainTestlist"
    train = [line.split() for line in (lists / "trainlist01.txt").read_text().splitlines()]
    test = (lists / "testlist01.txt").read_text().split()
    files = sorted(str(path.relative_to(dataset)) for path in dataset.glob("*/*.mp4"))
    assert sorted([name for name, _ in train] + test) == files
    assert len(files) == 16
    lines = [line.split() for line in (lists / "classInd.txt").read_text().splitlines()]
    numbers = {name: number for number, name in lines}
    assert all(numbers[name.split("/")[0]] == number for name, number in train)
    assert sorted(json.loads((dataset / "captions.json").read_text())) == files
    assert sorted(json.loads((dataset / "motion.json").read_text())) == files


def test_files_are_h264_and_close_to_what_was_rendered(dataset: Path) -> None:
    name = "SlideRight/v_SlideRight_g01_c01.mp4"
    with av.open(str(dataset / name)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    scene = random_scene("SlideRight", np.random.default_rng([3, CLASSES.index("SlideRight")]))
    assert len(frames) == 12
    assert np.abs(frames[9].astype(int) - render(scene, 9 / 25).astype(int)).mean() < 6


def test_bytes_of_the_videos_depend_on_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_dataset(str(tmp_path / name), videos=2, seed=seed, frames=4)
    one, same, other = (sorted((tmp_path / name).glob("*/*.mp4"))[0].read_bytes() for name in "abc")
    assert one == same
    assert one != other


def test_a_finished_set_is_kept_and_a_strange_folder_refused(dataset: Path, tmp_path: Path) -> None:
    assert make_dataset(str(dataset), videos=16, seed=3, frames=12, test_share=0.5) == 0
    with pytest.raises(UserError, match="other settings"):
        make_dataset(str(dataset), videos=17, seed=3)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        make_dataset(str(tmp_path), videos=1, seed=0)


def test_an_interrupted_set_is_completed(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "whole"), videos=3, seed=5, frames=4)
    make_dataset(str(tmp_path / "cut"), videos=3, seed=5, frames=4)
    (tmp_path / "cut" / "synthetic.json").unlink()
    for name in ("captions.json", "motion.json", "CameraPan/v_CameraPan_g01_c01.mp4"):
        (tmp_path / "cut" / name).unlink()
    for listing in (tmp_path / "cut" / "ucfTrainTestlist").iterdir():
        listing.unlink()
    (tmp_path / "cut" / "ucfTrainTestlist").rmdir()
    make_dataset(str(tmp_path / "cut"), videos=3, seed=5, frames=4)
    whole, cut = (sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("whole", "cut"))
    assert whole == cut


def centre(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """(x, y) centre of what differs from the background, in pixels."""
    difference = np.abs(frame.astype(int) - background.astype(int)).sum(-1) > 60
    y, x = np.nonzero(difference)
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize(("motion", "sign"), [("SlideLeft", -1), ("SlideRight", 1)])
def test_objects_move_as_their_class_says(motion: str, sign: int) -> None:
    import dataclasses

    for seed in range(5):
        scene = dataclasses.replace(random_scene(motion, np.random.default_rng(seed)), post=None)
        empty = dataclasses.replace(scene, bodies=())
        start, end = (centre(render(scene, t), render(empty, t)) for t in (0.2, 1.0))
        expected = scene.bodies[0].velocity[0] * 0.8 * 96
        assert np.sign(end[0] - start[0]) == sign
        assert abs((end[0] - start[0]) - expected) < 2.5
        assert abs(end[1] - start[1]) < 1


def test_growing_objects_grow_and_the_camera_moves_the_background() -> None:
    import dataclasses

    scene = dataclasses.replace(random_scene("Grow", np.random.default_rng(0)), post=None)
    empty = dataclasses.replace(scene, bodies=())
    areas = [(np.abs(render(scene, t).astype(int) - render(empty, t)).sum(-1) > 60).sum() for t in (0, 1)]
    assert areas[1] > 1.8 * areas[0]
    still, pan = (
        dataclasses.replace(random_scene(m, np.random.default_rng(1)), ground="tiled") for m in ("Grow", "CameraPan")
    )
    for scene, moves in ((still, False), (pan, True)):
        empty = dataclasses.replace(scene, bodies=(), post=None)
        assert (np.abs(render(empty, 0).astype(int) - render(empty, 1)).mean() > 1) == moves
