"""Every task and framework from files to a clip, with tiny random models; inpainting with the models that ship."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL, StableDiffusionInpaintPipeline
from helpers.tiny_bivdiff import FRAMES, Folders, settings_of, write_list
from helpers.tiny_diffusers import SIDE
from helpers.video_files import write_video

from pipeline.bivdiff.frames import Sources, read_sources
from pipeline.bivdiff.items import read_list
from pipeline.bivdiff.models import Models, load_models
from pipeline.bivdiff.run import load_metric_networks
from pipeline.bivdiff.work import VIDEO_SHARE, Made, make_clips, synthesise
from pipeline.media import decode_mp4
from pipeline.models.files.paths import shipped_path
from pipeline.sampling.items import Rejection
from pipeline.sampling.measures import psnr
from pipeline.settings import Settings
from pipeline.settings.bivdiff import PAPER_ALPHA

MEMBERS = {  # of a clip's files, besides the record, the source, the image model's frames and the clip
    "controlnet": {"control"},
    "t2i_adapter": {"control"},
    "instruct_pix2pix": set(),
    "prompt_to_prompt": set(),
    "inpainting": {"mask"},
    "outpainting": {"mask"},
}


@pytest.fixture(scope="module")
def items(folders: Folders) -> str:
    return write_list(folders, "one.csv", {})


def made_by(settings: Settings, models: Models | None = None) -> tuple[Made, Sources]:
    row = read_list(settings.bivdiff)[0][0]
    sources = read_sources(row[0], settings.bivdiff, settings.data)
    models = load_models(settings) if models is None else models
    return synthesise(models, row, sources, settings.bivdiff, settings.data, settings.run.seed), sources


@pytest.mark.parametrize("task", list(PAPER_ALPHA))
def test_task_goes_from_its_files_to_a_clip(task: str, folders: Folders, items: str, tmp_path: Path) -> None:
    settings = settings_of(folders, tmp_path, task, items, **{"evaluate.detector": "shipped:detector"})
    row = read_list(settings.bivdiff)[0][0]
    networks = load_metric_networks(settings.evaluate, "cpu")
    [(record, contents)], rejected = make_clips(
        load_models(settings), networks, settings.bivdiff, settings.data, settings.run.seed, row
    )
    assert not rejected
    files = {name.removesuffix(".mp4"): decode_mp4(content) for name, content in contents.items()}
    assert files.keys() == MEMBERS[task] | {"source", "frames", "generated"}
    assert {frames.shape for frames in files.values()} == {(FRAMES, SIDE, SIDE, 3)}
    frames, clip = files["frames"], files["generated"]
    assert (frames != clip).any(), "smoothed"
    assert record["alpha"] == PAPER_ALPHA[task] and record["seconds"] > 0
    assert {"frame_consistency_detector", "frame_consistency_of_frames_detector"} == record["metrics"].keys()
    if task.endswith("painting"):
        source, kept = files["source"], files["mask"].mean(-1) < 64
        assert 0.4 < kept.mean() < 0.6
        assert np.abs(frames[kept].astype(int) - source[kept])[:, None].mean() < 2, "but for the file's compression"
        assert np.abs(frames[~kept].astype(int) - source[~kept]).mean() > 10


def test_noise_is_of_the_row_and_the_seed_alone(folders: Folders, items: str, tmp_path: Path) -> None:
    settings = settings_of(folders, tmp_path, "controlnet", items, framework="idm_only")
    models = load_models(settings)
    first, again = (made_by(settings, models)[0].clips[0] for _ in range(2))
    assert (first == again).all()
    other = settings.model_copy(update={"run": settings.run.model_copy(update={"seed": 1})})
    assert (made_by(other, models)[0].clips[0] != first).any()
    assert (first[0] != first[1]).any()


def test_each_framework_makes_a_clip_of_its_own(folders: Folders, items: str, tmp_path: Path) -> None:
    def clip_of(framework: str) -> np.ndarray:
        settings = settings_of(folders, tmp_path, "controlnet", items, framework=framework, steps=4)
        made, _ = made_by(settings)
        assert (made.frames is None) == (framework != "bivdiff")
        return made.clips[0]

    found = {name: clip_of(name) for name in ("idm_only", "vdm_only", *VIDEO_SHARE, "bivdiff")}
    for name, clip in found.items():
        assert clip.shape == (FRAMES, SIDE, SIDE, 3)
        assert all((clip != other).any() for key, other in found.items() if key != name), f"{name} is another's clip"


def test_video_model_has_the_share_that_its_framework_names() -> None:
    assert [VIDEO_SHARE["sequential"](k, 4) for k in range(4)] == [0, 0, 1, 1]
    assert [VIDEO_SHARE["alternate"](k, 4) for k in range(4)] == [0, 1, 0, 1]
    assert [VIDEO_SHARE["fuse"](k, 4) for k in range(4)] == [0.5] * 4


def test_alphas_share_frames_and_inversions(folders: Folders, items: str, tmp_path: Path) -> None:
    settings = settings_of(folders, tmp_path, "prompt_to_prompt", items, alpha=[1.0, 0.0])
    made, _ = made_by(settings)
    assert made.frames is not None and len(made.clips) == 2
    for alpha, clip in zip((0.0, 1.0), made.clips, strict=True):
        alone, _ = made_by(settings_of(folders, tmp_path, "prompt_to_prompt", items, alpha=alpha))
        assert (alone.clips[0] == clip).all()


def test_row_that_cannot_be_made_is_a_line(folders: Folders, tmp_path: Path) -> None:
    items = write_list(folders, "bad.csv", {"prompt": "a red dog", "source_prompt": "dog"})
    settings = settings_of(folders, tmp_path, "prompt_to_prompt", items, edit="replace")
    row = read_list(settings.bivdiff)[0][0]
    result = make_clips(load_models(settings), {}, settings.bivdiff, settings.data, 0, row)
    reason = "source_prompt has 1 words, prompt 3; bivdiff.edit replace needs as many"
    assert result == ([], [Rejection("source.mp4", reason)])


def test_smoothing_by_an_own_model_keeps_the_unmasked_half_within_tolerance(folders: Folders, tmp_path: Path) -> None:
    """shipped:teacher smooths a clip of which Stable Diffusion Inpainting, of the same VAE, has made one half anew.

    With its own inversion (alpha 0) and no guidance, the other half comes back as the VAE has it.
    """
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folders.inpainting, safety_checker=None)
    pipe.register_modules(vae=AutoencoderKL.from_pretrained(shipped_path("shipped:vae")))
    pipe.save_pretrained(tmp_path / "inpainting")
    write_video(tmp_path / "clip.mp4", frames=16, size=(64, 64))
    items = tmp_path / "list.csv"
    items.write_text(f"video,mask,prompt\nclip.mp4,{folders.inputs / 'mask64.png'},Spin\n")
    values = {"image_model": tmp_path / "inpainting", "video_model": "shipped:teacher", "alpha": 0.0}
    values |= {"guidance": 1.0, "steps": 25}
    settings = settings_of(
        folders,
        tmp_path,
        "inpainting",
        str(items),
        **values,
        **{"data.frames": 16, "data.height": 64, "data.width": 64},
    )
    models = load_models(settings)
    made, sources = made_by(settings, models)
    assert models.video is not None and sources.video is not None and made.frames is not None
    best = models.video.decode(models.video.encode(made.frames))
    left = np.s_[:, :, :32]
    assert psnr(made.clips[0][left], best[left]) > 20
    assert psnr(made.clips[0][left], sources.video[left]) > psnr(best[left], sources.video[left]) - 3
