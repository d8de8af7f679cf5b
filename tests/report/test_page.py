"""The page: offline, escaped, honest about what was not run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.media import encode_mp4, encode_png
from pipeline.report.page import write_report
from pipeline.settings import ROOT, Settings, build, read_yaml

EVIL = "<script>alert('x')</script> \"quoted\" & <img src=http://evil.example/x>"


class Links(HTMLParser):
    """Everything on a page that a browser would fetch, and the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data")
        ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    layers = [read_yaml(ROOT / "ray_config.yaml"), read_yaml(ROOT / "jobs" / "recipes" / "demo.yaml")]
    return build([*layers, {"run": {"storage": str(tmp_path), "name": "r"}}])


def write(settings: Settings, name: str, content: str | bytes | dict[str, object]) -> None:
    path = Path(settings.run.folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def fill(settings: Settings) -> None:
    write(
        settings,
        "cache/summary.json",
        {"planned": 9, "cached": 7, "rejected": 2, "rejects": {"too_short": 2}, "seconds": 5.0},
    )
    write(settings, "prior/summary.json", {"seconds": 130.0})
    write(settings, "prior/history.csv", "step,loss,validation_loss\n10,1.5,\n20,0.7,0.9\n30,0.4,\n")
    write(settings, "finetune/summary.json", {"seconds": 3700.0})
    found = {"protocol": "FVD, of some kind", "value": 123.456, "low": 100.0, "high": 150.0, "count": 7}
    found["departs_from_protocol"] = ["7 clips, fewer than 2048"]
    skipped = {"clipsim": "no weights: evaluate.clip is null"}
    write(settings, "evaluate/metrics.json", {"metrics": {"fvd": found}, "skipped": skipped, "seconds": 2.0})
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    for member in ("prior", "generated", "true"):
        write(settings, f"samples/k1.{member}.mp4", encode_mp4(frames, 8))
    write(settings, "samples/k1.image.png", encode_png(frames[0]))
    values = {"psnr_first_frame": 25.0, "motion_ratio": None}
    write(settings, "samples/k1.json", {"key": "k1", "name": EVIL, "label": EVIL, "caption": EVIL, "metrics": values})
    statistics = {"n": 1, "median": 25.0, "mean": 25.0, "quartile1": 24.0, "quartile3": 26.0}
    metrics = {
        "psnr_first_frame": statistics,
        "motion_ratio": {"n": 0},
        "prior_latent_error": statistics | {"mean": 0.25},
    }
    metrics["replicated_latent_error"] = statistics | {"mean": 0.5}
    sampled = {"steps": 20, "sampler": "sde_first_order", "guidance": 1.0}
    summary = {
        "settings": sampled,
        "source": "held_out",
        "count": 1,
        "seconds": 9.0,
        "notes": [EVIL],
        "items": ["k1", "lost"],
    }
    summary["refused"] = [{"name": EVIL, "reason": "not an image"}]
    write(settings, "samples/summary.json", summary | {"metrics": metrics})


def page_of(settings: Settings) -> tuple[str, Links]:
    text = Path(settings.run.folder, "report.html").read_text()
    links = Links()
    links.feed(text)
    return text, links


def test_page_fetches_nothing_and_shows_the_clips(settings: Settings) -> None:
    fill(settings)
    write_report(settings)
    text, links = page_of(settings)
    assert all(value.startswith(("data:", "#")) for value in links.fetched), [v[:60] for v in links.fetched]
    assert not re.search(r"@import|url\((?!#)", text)
    videos = [attributes for tag, attributes in links.tags if tag == "video"]
    assert len(videos) == 3
    for video in videos:
        assert {"autoplay", "loop", "muted", "playsinline", "aria-label"} <= set(video)
        assert str(video["src"]).startswith("data:video/mp4;base64,")
    assert all(attributes.get("alt") for tag, attributes in links.tags if tag == "img")
    assert "too_short" in text and "1 h 1 min" in text


def test_page_shows_metrics_with_interval_and_departures_and_names_skipped_ones(settings: Settings) -> None:
    fill(settings)
    write_report(settings)
    text, _ = page_of(settings)
    for words in (
        "FVD, of some kind",
        "123.456",
        "100.000 to 150.000",
        "7 clips, fewer than 2048",
        "evaluate.clip is null",
        "published: UCF-101, FrameBridge",
    ):
        assert words in text


def test_words_from_files_are_escaped(settings: Settings) -> None:
    fill(settings)
    write_report(settings)
    text, links = page_of(settings)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert") >= 4
    assert [tag for tag, _ in links.tags].count("script") == 1


def test_headline_numbers_are_at_the_top_of_summary_json(settings: Settings) -> None:
    fill(settings)
    write_report(settings)
    summary = json.loads(Path(settings.run.folder, "summary.json").read_text())
    assert summary["psnr_first_frame_median"] == 25.0
    assert summary["motion_ratio_median"] is None
    assert (summary["prior_latent_error"], summary["replicated_latent_error"]) == (0.25, 0.5)
    assert summary["held_out_inputs"] == 1
    assert summary["timings"] | {"report": 0} == {
        "cache": 5.0,
        "prior": 130.0,
        "finetune": 3700.0,
        "samples": 9.0,
        "evaluate": 2.0,
        "report": 0,
    }
    assert summary["stages"]["cache"]["rejects"] == {"too_short": 2}


def test_page_names_the_stages_that_have_not_run(settings: Settings) -> None:
    with pytest.raises(UserError, match="no stage has finished there"):
        write_report(settings)
    assert not Path(settings.run.folder).exists()
    write(settings, "cache/summary.json", {"planned": 1, "cached": 1, "rejected": 0, "seconds": 2.0})
    summary = write_report(settings)
    text, _ = page_of(settings)
    assert text.count("ot run (jobs/") == 4  # prior, fine-tuning, sampling, evaluation
    assert summary["stages"]["samples"] is None


def test_torn_summary_is_refused_in_one_line(settings: Settings) -> None:
    write(settings, "cache/summary.json", '{"planned": 1,')
    with pytest.raises(UserError, match=r"cache/summary.json: not valid JSON"):
        write_report(settings)


def test_commit_comes_from_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(settings)
    monkeypatch.setenv("FRAMEBRIDGE_COMMIT", "abc1234")
    assert write_report(settings)["commit"] == "abc1234"
    assert "abc1234" in page_of(settings)[0]


def test_page_of_bivdiff_shows_frames_beside_clips_and_names_rejected_rows(settings: Settings) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    for member in ("source", "frames", "generated"):
        write(settings, f"bivdiff/k1.{member}.mp4", encode_mp4(frames, 8))
    values = {"frame_consistency": 0.91234, "textual_alignment": 0.3}
    record = {"key": "k1", "name": EVIL, "label": "", "caption": EVIL, "alpha": 0.25, "metrics": values}
    write(settings, "bivdiff/k1.json", record)
    how = {"bivdiff": {"task": "inpainting", "framework": "bivdiff", "steps": 50}}
    summary = {"settings": how, "seconds": 7.0, "seconds_per_clip": {"median": 3.25}, "items": ["k1"]}
    write(settings, "bivdiff/summary.json", summary | {"refused": [{"name": EVIL, "reason": "mask is narrow"}]})
    assert write_report(settings)["timings"]["bivdiff"] == 7.0
    text, links = page_of(settings)
    assert [tag for tag, _ in links.tags].count("video") == 3
    for words in (
        "inpainting, bivdiff, 50 steps",
        "alpha 0.25",
        "frame consistency 0.912",
        "mask is narrow",
        "3.2 s a clip",
    ):
        assert words in text
    assert "<script>alert" not in text
