"""Right frames, whatever the file; and a typed reason where there are none."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers.video_files import number, sequential, write_video

from pipeline.data.decode.crop import resize_and_crop
from pipeline.data.decode.decoders import decode_clip
from pipeline.data.decode.fetch import DecodeFailure
from pipeline.schema import ClipSpan, PlannedClip
from pipeline.settings import DataSettings, load

DECODERS = ["decord", "pyav", *(["torchcodec"] if find_spec("torchcodec") else [])]


def settings(**changes: Any) -> DataSettings:
    data = load(["--recipe", "demo"])[0].data
    return data.model_copy(update={"stride": 3, "height": 72, "width": 96, **changes})


def planned(path: Path, ordinal: int = 0, clips: int = 1, flip: bool = False) -> PlannedClip:
    size = path.stat().st_size if path.exists() else 0
    return PlannedClip(
        uri=str(path),
        video=path.name,
        size=size,
        split="train",
        label="",
        caption="",
        ordinal=ordinal,
        clips=clips,
        flip=flip,
    )


def expect_frames(path: Path, decoder: str, used: str | None = None, **changes: Any) -> ClipSpan:
    """The decoder gives what a sequential decode of the whole file gives at the indices of its span."""
    data = settings(decoder=decoder, **changes)
    frames, span = decode_clip(planned(path), data)
    whole = sequential(path)
    assert span["source_frames"] == len(whole)
    wanted = [whole[span["start"] + span["stride"] * index] for index in range(16)]
    wanted = [resize_and_crop(frame, data.height, data.width) for frame in wanted]
    assert np.abs(frames.astype(int) - np.stack(wanted)).mean((1, 2, 3)).max() < 1
    if used:
        assert span["decoder"] == used
    return span


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b_frames.mp4", {"bf": "3", "g": "12"}),
        ("one_keyframe.mp4", {"bf": "2", "g": "250"}),
        ("b_frames.mkv", {"bf": "3", "g": "12"}),
    ],
)
def test_seeking_in_h264_gives_the_frames_of_a_sequential_decode(
    tmp_path: Path, name: str, options: dict[str, str], decoder: str
) -> None:
    path = write_video(tmp_path / name, 90, options=options)
    span = expect_frames(path, decoder, used="decord" if decoder == "auto" else decoder)
    assert span["start"] == 22 and span["stride"] == 3 and span["source_fps"] == 25
    frames, _ = decode_clip(planned(path), settings(decoder=decoder))
    assert [number(frame) for frame in frames] == list(range(22, 68, 3))


def test_xvid_avi_without_time_stamps_goes_to_pyav(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "ucf.avi", 75, codec="mpeg4", options={"bf": "2", "g": "12", "qscale": "2"}, tag="XVID"
    )
    expect_frames(path, "auto", used="pyav")
    frames, span = decode_clip(planned(path), settings())
    assert [number(frame) for frame in frames] == list(range(span["start"], span["start"] + 46, 3))


def test_frames_that_xvid_dropped_are_no_frames_and_no_damage(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", 60, codec="mpeg4", options={"bf": "0", "g": "12"}, tag="XVID")
    path = tmp_path / "dropped.avi"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packet: av.Packet[Any]
        for index, packet in enumerate(source.demux(video=0)):
            if packet.size == 0:
                continue
            if index >= 50:  # the encoder's mark of a frame like the one before
                mark = av.Packet(b"\x7f")
                mark.pts, mark.dts, mark.time_base, mark.duration = (packet.pts, packet.dts, packet.time_base, 1)
                packet = mark
            packet.stream = stream
            target.mux(packet)
    frames, span = decode_clip(planned(path), settings())
    assert span["source_frames"] == 50 and number(frames[0]) == span["start"]


ODD_FILES: list[tuple[str, dict[str, Any], str]] = [
    ("variable_rate.mp4", {"time": lambda index: index * 2 + (index % 3 == 1)}, "decord"),
    ("odd_size.mp4", {"size": (74, 98)}, "decord"),
    ("sound_first.mp4", {"audio_first": True}, "decord"),
    ("stream.ts", {}, "pyav"),
    ("program.mpg", {"codec": "mpeg1video", "options": {"qscale": "2"}}, "pyav"),
    ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, "pyav"),
    ("mpeg4_named.mp4", {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}}, "pyav"),
    ("full_colour.mp4", {"pixels": "yuv444p"}, "pyav"),
    ("no_extension", {"container": "mp4"}, "decord"),
]


@pytest.mark.parametrize(("name", "arguments", "used"), ODD_FILES, ids=[name for name, *_ in ODD_FILES])
def test_every_decoder_equals_a_sequential_decode_or_refuses(
    tmp_path: Path, name: str, arguments: dict[str, Any], used: str
) -> None:
    path = write_video(tmp_path / name, 60, **arguments)
    span = expect_frames(path, "auto", used)
    assert expect_frames(path, "pyav", "pyav") == {**span, "decoder": "pyav"}
    for decoder in {*DECODERS} - {"pyav"}:
        if used == "decord":
            assert expect_frames(path, decoder, decoder) == {**span, "decoder": decoder}
        else:
            assert reason(path, decoder=decoder) == "unsupported"


@pytest.mark.parametrize("decoder", DECODERS)
def test_rotation_is_applied(tmp_path: Path, decoder: str) -> None:
    path = write_video(tmp_path / "turned.mp4", 50, size=(80, 96), rotation=90)
    frames, span = decode_clip(planned(path), settings(decoder=decoder, height=96, width=80))
    assert (span["source_height"], span["source_width"]) == (96, 80)
    upright = np.rot90(sequential(path)[span["start"]])
    assert np.abs(frames[0].astype(int) - upright).mean() < 2


def test_width_at_which_decord_returns_rubbish_goes_to_pyav(tmp_path: Path) -> None:
    path = write_video(tmp_path / "narrow.mp4", 50, size=(64, 72))
    expect_frames(path, "auto", used="pyav", height=64, width=72)
    assert reason(path, decoder="decord") == "unreadable"


def test_clips_of_one_video_differ_and_the_surplus_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", 47)
    spans = [decode_clip(planned(path, ordinal, 3), settings())[1] for ordinal in range(2)]
    assert [span["start"] for span in spans] == [0, 1] and spans[0]["key"] != spans[1]["key"]
    with pytest.raises(DecodeFailure, match="too_short: 47 frames leave room for 2 of 3 clips"):
        decode_clip(planned(path, 2, 3), settings())


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_authors_window_takes_their_frames(tmp_path: Path, decoder: str) -> None:
    frames, span = decode_clip(
        planned(write_video(tmp_path / "a.mp4", 60)), settings(decoder=decoder, window="ucf101_authors")
    )
    assert (span["start"], span["span"], span["stride"]) == (6, 48, 3)
    assert [number(frame) - 6 for frame in frames] == [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 47]


def test_a_range_of_strides_gives_each_video_its_own(tmp_path: Path) -> None:
    strides = set()
    for index in range(12):
        path = write_video(tmp_path / f"{index}.mp4", 40)
        frames, span = decode_clip(planned(path), settings(stride=(1, 6), clip_starts="random"))
        numbers = [number(frame) for frame in frames]
        assert set(np.diff(numbers)) == {span["stride"]} and numbers[0] == span["start"]
        assert span["span"] == numbers[-1] - numbers[0] + 1 <= 40
        assert decode_clip(planned(path), settings(stride=(1, 6), clip_starts="random"))[1] == span
        strides.add(span["stride"])
    assert strides == {1, 2}, "40 frames have no room for more"


def test_the_mirrored_clip_is_another_clip_of_the_same_frames(tmp_path: Path) -> None:
    path, data = write_video(tmp_path / "a.mp4", 50), settings(flip=True, clip_starts="random")
    frames, span = decode_clip(planned(path), data)
    mirrored, other = decode_clip(planned(path, flip=True), data)
    assert np.array_equal(mirrored[:, :, ::-1], frames) and not np.array_equal(mirrored, frames)
    assert other == {**span, "key": other["key"]} and other["key"] != span["key"]
    assert number(frames[0]) == span["start"]


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def reason(path: Path, **changes: Any) -> str:
    with pytest.raises(DecodeFailure) as failure:
        decode_clip(planned(path), settings(**changes))
    assert "\n" not in failure.value.detail and str(path.parent) not in failure.value.detail
    return failure.value.reason


def test_every_failure_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    assert reason(tmp_path / "empty.mp4") == "unreadable"
    assert reason(tmp_path / "text.mp4") == "unreadable"
    short = write_video(tmp_path / "short.mp4", 15)
    assert reason(short) == "too_short"
    assert reason(write_video(tmp_path / "45.mp4", 45), short_video="reject") == "too_short"
    assert reason(short, max_pixels=1000) == "too_large"


def test_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DecodeFailure, match="missing"):
        decode_clip(planned(tmp_path / "gone.mp4"), settings())


def test_truncated_file_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", 90, container_options={"movflags": "faststart"})
    cut(path, 0.7)
    assert reason(path) == "truncated"
    path = write_video(tmp_path / "cut.mkv", 90, options={"g": "12", "crf": "5"})
    cut(path, 0.6)
    assert reason(path) == "truncated"


def test_damaged_frames_are_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "noise.avi", 60, codec="mpeg4", options={"g": "30", "qscale": "2"}, tag="XVID")
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    content[len(content) // 2 : len(content) // 2 + 4000] = noise
    path.write_bytes(content)
    assert reason(path) in ("corrupt", "truncated")
