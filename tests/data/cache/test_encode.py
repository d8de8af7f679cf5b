"""Frames to posteriors, whatever the batch; and what the VAE cannot encode is rejected."""

from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import AutoencoderKL
from helpers.tiny_text import save_tiny_clip
from helpers.tiny_vae import save_tiny_vae
from helpers.tiny_video_vae import save_tiny_video_vae

from pipeline.data.cache.encode import EncodeClips, clips_a_call
from pipeline.models.text import load_text_encoder
from pipeline.models.vae import compile_encoder, load_vae
from pipeline.schema import DECODED_SCHEMA
from pipeline.settings import DataSettings, TextSettings, VaeSettings

Dtype = Literal["float32", "bfloat16", "float16"]


def decoded(*clips: int | None) -> pa.Table:
    """Rows with random frames, or a failure for each None."""
    rows = []
    for index, seed in enumerate(clips):
        row = {"uri": str(index), "video": str(index), "size": 1, "split": "train", "label": "", "caption": ""}
        row |= {"ordinal": 0, "clips": 1, "flip": False, "attempts": 1}
        if seed is None:
            row |= {"stage": "decode", "reason": "corrupt", "detail": ""}
        else:
            frames = np.random.default_rng(seed).integers(0, 256, (4, 16, 24, 3), np.uint8)
            row |= {"key": str(index), "frames": frames.tobytes()}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def encoder(
    folder: Path,
    batch_frames: int = 64,
    dtype: Dtype = "float32",
    text: TextSettings | None = None,
    null_text: str | None = None,
) -> EncodeClips:
    vae = VaeSettings(path=str(folder), dtype=dtype, batch_frames=batch_frames, compile=False)
    data = DataSettings.model_construct(frames=4, height=16, width=24)
    return EncodeClips(vae, data, num_cpus=1, num_gpus=0, text=text, null_text=null_text)


def latents(table: pa.Table) -> list[np.ndarray | None]:
    return [None if value is None else np.load(BytesIO(value)) for value in table["latent"].to_pylist()]


@pytest.mark.parametrize("batch_frames", [1, 3, 64])
def test_failures_travel_on_and_the_batch_does_not_matter(tmp_path: Path, batch_frames: int) -> None:
    save_tiny_vae(tmp_path)
    alone = latents(encoder(tmp_path, batch_frames)(decoded(7)))[0]
    together = encoder(tmp_path, batch_frames)(decoded(None, 5, None, 7))
    assert together["reason"].to_pylist() == ["corrupt", None, "corrupt", None]
    first, second, third, fourth = latents(together)
    assert first is None and third is None and second is not None and fourth is not None and alone is not None
    assert fourth.shape == (2, 4, 4, 2, 3) and fourth.dtype == np.float16
    assert np.array_equal(fourth, alone) and not np.allclose(second, alone, atol=2e-3)
    assert encoder(tmp_path)(decoded(None))["reason"].to_pylist() == ["corrupt"]


@pytest.mark.parametrize("batch_frames", [1, 3, 5, 8, 64])
def test_batches_over_the_ends_of_clips_give_the_same_latents(tmp_path: Path, batch_frames: int) -> None:
    save_tiny_vae(tmp_path)
    clips = [np.random.default_rng(seed).integers(0, 256, 4 * 16 * 24 * 3, np.uint8) for seed in range(3)]
    filling = encoder(tmp_path, batch_frames)
    filling._fill_batches = True  # as on a GPU
    filling.encode(clips)  # leaves other frames behind, which must not show
    assert np.allclose(filling.encode(clips[:2]), encoder(tmp_path).encode(clips[:2]), atol=2e-3)


def test_running_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tiny_vae(tmp_path)
    clips = [np.random.default_rng(seed).integers(0, 256, 4 * 16 * 24 * 3, np.uint8) for seed in range(3)]
    expected = encoder(tmp_path).encode(clips)
    small = encoder(tmp_path, 8)
    small._fill_batches = True

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    small.vae.module.encoder.register_forward_pre_hook(refuse)
    room = 5
    assert np.allclose(small.encode(clips), expected, atol=2e-3)
    assert np.allclose(small.encode(clips), expected, atol=2e-3)
    assert [record.message for record in caplog.records] == [
        "out of GPU memory with 8 frames at once; going on with 4 (set vae.batch_frames to spare the try)"
    ]
    room = 0
    with pytest.raises(torch.OutOfMemoryError, match="no room for a single frame"):
        small.encode(clips)


def test_a_clip_that_overflows_is_rejected_and_costs_itself_only(tmp_path: Path) -> None:
    save_tiny_vae(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path)
    vae.encoder.conv_in.weight.data.fill_(6000.0)  # in float16 a white frame is too much for it, a grey one is not
    vae.save_pretrained(tmp_path)
    frames = [np.full((4, 16, 24, 3), grey, np.uint8).tobytes() for grey in (128, 255, 129)]
    batch = decoded(0, 1, 2).set_column(
        DECODED_SCHEMA.get_field_index("frames"), "frames", pa.array(frames, pa.large_binary())
    )
    cases: list[tuple[Dtype, list[str | None]]] = [("float16", [None, "not_finite", None]), ("float32", [None] * 3)]
    for dtype, expected in cases:
        rows = encoder(tmp_path, dtype=dtype)(batch).to_pylist()
        assert [row["reason"] for row in rows] == expected
        assert [row["latent"] is None for row in rows] == [reason is not None for reason in expected]
    rejected = encoder(tmp_path, dtype="float16")(batch).to_pylist()[1]
    assert rejected["stage"] == "encode" and "--vae.dtype float32" in rejected["detail"]


def test_means_beyond_float16_are_rejected_in_every_precision(tmp_path: Path) -> None:
    save_tiny_vae(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path)
    vae.quant_conv.bias.data[0] = 1e5
    vae.quant_conv.bias.data[4:] = 1e5  # of the log-variance: clamped to 20, as diffusers does
    vae.save_pretrained(tmp_path)
    assert encoder(tmp_path)(decoded(1))["reason"].to_pylist() == ["not_finite"]
    vae.quant_conv.bias.data[0] = 0
    vae.save_pretrained(tmp_path)
    (latent,) = latents(encoder(tmp_path)(decoded(1)))
    assert latent is not None and (latent[1] == 20).all()


def test_captions_or_else_classes_are_embedded_beside_the_latents(tmp_path: Path) -> None:
    save_tiny_vae(tmp_path / "vae")
    text = TextSettings(path=save_tiny_clip(tmp_path / "clip"), tokenizer=None, layer=-2, max_length=8, dtype="float32")
    batch = decoded(1, None, 2, 3)
    for column, values in {"caption": ["a dog", "x", "", "a dog"], "label": ["Run", "", "Jump", ""]}.items():
        batch = batch.set_column(batch.schema.get_field_index(column), column, pa.array(values))
    table = encoder(tmp_path / "vae", text=text, null_text=f"{tmp_path}/null_text.npy")(batch)
    first, failed, second, third = (value and np.load(BytesIO(value)) for value in table["text"].to_pylist())
    expected = load_text_encoder(text).encode(["a dog", "Jump"]).half().numpy()
    assert failed is None and first.shape == (8, 16) and first.dtype == np.float16
    assert np.array_equal(first, expected[0]) and np.array_equal(third, first) and np.array_equal(second, expected[1])
    empty = load_text_encoder(text).encode([""])[0].half().numpy()
    assert np.array_equal(np.load(tmp_path / "null_text.npy"), empty)
    without = encoder(tmp_path / "vae")(batch)
    assert without["text"].null_count == 4 and without["latent"] == table["latent"]


def test_a_video_vae_gets_whole_clips(tmp_path: Path) -> None:
    vae = VaeSettings(path=save_tiny_video_vae(tmp_path), dtype="float32", batch_frames=1, compile=False)
    data = DataSettings.model_construct(frames=9, height=16, width=24)
    actor = EncodeClips(vae, data, num_cpus=1, num_gpus=0)
    clips = [np.random.default_rng(seed).integers(0, 256, (9, 16, 24, 3), np.uint8) for seed in range(2)]
    posterior = actor.encode(clips)
    assert posterior.shape == (2, 2, 3, 16, 2, 3) and posterior.dtype == np.float16
    mean, logvar = actor.vae.encode_clips(torch.from_numpy(clips[1])[None])
    assert np.array_equal(posterior[1], torch.cat([mean, logvar]).half().numpy())


def test_an_embedding_that_overflows_is_rejected(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    save_tiny_vae(tmp_path / "vae")
    text = TextSettings(path=save_tiny_clip(tmp_path / "clip"), tokenizer=None, layer=-1, max_length=8, dtype="float32")
    model = CLIPTextModel.from_pretrained(tmp_path / "clip")
    model.final_layer_norm.bias.data[:] = 1e6
    model.save_pretrained(tmp_path / "clip")
    (row,) = encoder(tmp_path / "vae", text=text)(decoded(1)).to_pylist()
    assert (row["reason"], row["latent"], row["text"]) == ("not_finite", None, None)
    assert "text.path" in row["detail"]


def test_an_actor_on_a_gpu_gets_several_batches_a_call() -> None:
    vae = VaeSettings(path="", dtype="bfloat16", batch_frames=64, compile=True)
    assert clips_a_call(vae, 16, num_gpus=0) == 4 < clips_a_call(vae, 16, num_gpus=0.5)
    assert clips_a_call(vae, 100, num_gpus=0) == 1


def test_an_encoder_that_does_not_compile_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Uncompiled(torch.nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("backend='inductor' raised:\nFound no C compiler\n\nand a long story")

    vae = load_vae(save_tiny_vae(tmp_path))
    frames = torch.zeros(1, 16, 24, 3, dtype=torch.uint8)
    before = torch.stack(vae.encode(frames))
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: Uncompiled())  # the compiler takes half a minute
    assert not compile_encoder(vae, frames)
    (record,) = caplog.records
    assert "Found no C compiler)" in record.message and "vae.compile false" in record.message
    assert torch.equal(torch.stack(vae.encode(frames)), before)
