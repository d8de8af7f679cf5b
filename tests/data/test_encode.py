"""Frames to posteriors, whatever the batch; and what the VAE cannot encode is a reject."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from diffusers import AutoencoderKL
from tiny_vae import save_tiny_vae

from pipeline.data.encode import EncodeClips
from pipeline.schema import DECODED_SCHEMA
from pipeline.settings import DataSettings, VaeSettings


def decoded(*clips: int | None) -> pa.Table:
    """Rows with random frames, or a failure for each None."""
    rows = []
    for index, seed in enumerate(clips):
        row = {"uri": str(index), "video": str(index), "size": 1, "split": "train", "label": "", "caption": ""}
        row |= {"ordinal": 0, "clips": 1, "attempts": 1}
        if seed is None:
            row |= {"stage": "decode", "reason": "corrupt", "detail": ""}
        else:
            frames = np.random.default_rng(seed).integers(0, 256, (4, 16, 24, 3), np.uint8)
            row |= {"key": str(index), "frames": frames.tobytes()}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def encoder(folder: Path, batch_frames: int = 64) -> EncodeClips:
    vae = VaeSettings(path=str(folder), dtype="float32", batch_frames=batch_frames)
    data = DataSettings.model_construct(frames=4, height=16, width=24)
    return EncodeClips(vae, data, num_cpus=1, num_gpus=0)


def latents(table: pa.Table) -> list[np.ndarray | None]:
    from io import BytesIO

    return [None if value is None else np.load(BytesIO(value)) for value in table["latent"].to_pylist()]


@pytest.mark.parametrize("batch_frames", [1, 3, 64])
def test_failures_travel_on_and_the_batch_does_not_matter(tmp_path: Path, batch_frames: int) -> None:
    save_tiny_vae(tmp_path)
    alone = latents(encoder(tmp_path)(decoded(7)))[0]
    together = encoder(tmp_path, batch_frames)(decoded(None, 5, None, 7))
    assert together["reason"].to_pylist() == ["corrupt", None, "corrupt", None]
    first, second, third, fourth = latents(together)
    assert first is None and third is None and second is not None and fourth is not None and alone is not None
    assert fourth.shape == (2, 4, 4, 2, 3) and fourth.dtype == np.float16
    assert np.allclose(fourth, alone, atol=2e-3) and not np.allclose(second, alone, atol=2e-3)
    assert encoder(tmp_path)(decoded(None))["reason"].to_pylist() == ["corrupt"]


def test_undefined_latents_are_a_reject(tmp_path: Path) -> None:
    save_tiny_vae(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path)
    vae.encoder.conv_in.bias.data[0] = float("nan")
    vae.save_pretrained(tmp_path)
    (row,) = encoder(tmp_path)(decoded(1)).to_pylist()
    assert (row["stage"], row["reason"], row["latent"]) == ("encode", "not_finite", None)
    assert "--vae.dtype float32" in row["detail"]
