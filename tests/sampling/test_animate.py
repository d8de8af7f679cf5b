"""One image to one clip, and the page around it."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny_models import FRAMES, SIDE, load_run
from PIL import Image

from pipeline.errors import UserError
from pipeline.media import decode_mp4
from pipeline.sampling.animate import animate, build_page, find_models
from pipeline.sampling.generate import LoadedModel
from pipeline.settings import Settings


@pytest.fixture(scope="module")
def loaded(tiny_run: Settings) -> LoadedModel:
    return load_run(tiny_run)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), (10, 200, 40)).save(stream, "JPEG")
    return stream.getvalue()


def test_same_image_class_and_seed_are_the_same_clip(loaded: LoadedModel) -> None:
    made = animate(loaded, picture(), "slide_left", 0, 10**6)
    assert made.frames.shape == (FRAMES, SIDE, SIDE, 3)
    assert decode_mp4(made.mp4).shape == made.frames.shape
    assert animate(loaded, picture(), "Slide Left", 0, 10**6).mp4 == made.mp4
    for asked, seed in (("bounce", 0), ("slide left", 1)):
        assert not np.array_equal(animate(loaded, picture(), asked, seed, 10**6).frames, made.frames)


def test_unusable_images_and_classes_are_one_line(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="the image: not an image"):
        animate(loaded, b"hello", "", 0, 10**6)
    with pytest.raises(UserError, match="1000"):
        animate(loaded, picture(), "", 0, 1000)
    with pytest.raises(UserError, match="jump: not a class of this model; choose one of bounce, slide left"):
        animate(loaded, picture(), "jump", 0, 10**6)


def test_page_offers_the_exports_that_are_there(tiny_run: Settings, tmp_path: Path) -> None:
    assert find_models(tiny_run.run.storage, None) == [tiny_run.model_export]
    assert find_models(str(tmp_path), "/an/export") == ["/an/export"]
    with pytest.raises(UserError, match=r"no RUN/finetune/export there; run jobs/finetune.py"):
        find_models(str(tmp_path), None)


def test_page_says_how_to_install_gradio(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match="gradio is not installed; run pip install"):
        build_page(["an export"], lambda _: loaded, 10**6)


def test_page_makes_a_clip_on_this_machine_only(
    loaded: LoadedModel, tiny_run: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("gradio", reason="an extra that is not installed")
    from gradio_client import Client, handle_file

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    (tmp_path / "image.jpg").write_bytes(picture())
    page: Any = build_page([tiny_run.model_export], lambda _: loaded, 10**6)
    page.launch(server_name="127.0.0.1", share=False, prevent_thread_lock=True, quiet=True)
    try:
        assert page.local_url.startswith("http://127.0.0.1:")
        client = Client(page.local_url, verbose=False)
        answer = client.predict(
            handle_file(str(tmp_path / "image.jpg")), "bounce", tiny_run.model_export, 0, api_name="/make"
        )
        path = answer["video"] if isinstance(answer, dict) else answer
        assert decode_mp4(Path(path).read_bytes()).shape == (FRAMES, SIDE, SIDE, 3)
    finally:
        page.close()
