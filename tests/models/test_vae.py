"""The VAE takes and gives uint8 frames, with 8x downsampling and 4 channels; others are refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from helpers.tiny_vae import save_tiny_vae
from helpers.tiny_video_vae import save_tiny_video_vae

from pipeline.errors import UserError
from pipeline.models.vae import load_vae, sample_posterior


def tiny(folder: Path, levels: int = 4, channels: int = 4) -> str:
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.5,
    ).save_pretrained(folder)
    return str(folder)


def test_decode_undoes_the_scaling_and_gives_uint8(tmp_path: Path) -> None:
    vae = load_vae(tiny(tmp_path))
    frames = torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, logvar = vae.encode(frames)
    assert mean.shape == logvar.shape == (3, 4, 2, 3)
    assert mean.dtype == torch.float32
    assert vae.scaling_factor == 0.5
    decoded = vae.decode(mean * vae.scaling_factor)
    assert decoded.shape == frames.shape
    assert decoded.dtype == torch.uint8
    # as diffusers decodes the unscaled latent
    own = ((vae.module.decode(mean).sample + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    assert (decoded.int() - own.int()).abs().max() <= 1


def test_posterior_sample_has_the_posteriors_moments() -> None:
    generator = torch.Generator().manual_seed(1)
    mean, logvar = torch.full((200_000,), 3.0), torch.full((200_000,), -2.0)
    z = sample_posterior(mean, logvar, torch.randn(mean.shape, generator=generator), 0.5)
    assert z.mean() == pytest.approx(1.5, abs=0.005)
    assert z.std() == pytest.approx(0.5 * torch.exp(torch.tensor(-1.0)).item(), rel=0.01)


def test_weights_hash_follows_the_weights(tmp_path: Path) -> None:
    one, other = tiny(tmp_path / "one"), tiny(tmp_path / "other")
    assert load_vae(one).weights_hash == load_vae(one).weights_hash != load_vae(other).weights_hash


@pytest.mark.parametrize(("levels", "channels"), [(3, 4), (4, 8)])
def test_another_kind_of_vae_is_refused(tmp_path: Path, levels: int, channels: int) -> None:
    with pytest.raises(UserError, match="the pipeline expects 8x and 4"):
        load_vae(tiny(tmp_path, levels, channels))


def test_folder_without_a_vae_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"give a diffusers folder") as error:
            load_vae(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"shipped:nothing: no such shipped model; there are .*shipped:vae"):
        load_vae("shipped:nothing")


def test_shipped_vae_is_small_and_reconstructs_synthetic_frames() -> None:
    import numpy as np

    from pipeline.models.files.paths import shipped_path
    from pipeline.sampling.measures import psnr
    from pipeline.shipped.synthetic import CLASSES, random_scene, render

    folder = Path(shipped_path("shipped:vae"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    vae = load_vae("shipped:vae")
    scenes = [random_scene(motion, np.random.default_rng([9, i])) for i, motion in enumerate(CLASSES * 2)]
    frames = torch.from_numpy(np.stack([render(scene, 0.5, 64, 64) for scene in scenes]))
    decoded = vae.decode(vae.encode(frames)[0] * vae.scaling_factor)
    values = [psnr(a.numpy(), b.numpy()) for a, b in zip(decoded, frames, strict=True)]
    stated = json.loads((folder / "summary.json").read_text())["psnr_held_out"]
    assert np.mean(values) > stated - 3


def test_video_vae_takes_and_gives_whole_clips(tmp_path: Path) -> None:
    vae = load_vae(save_tiny_video_vae(tmp_path))
    clips = torch.randint(0, 256, (2, 9, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, logvar = vae.encode_clips(clips)
    assert mean.shape == logvar.shape == (2, 3, 16, 2, 2) and vae.temporal == 4 and vae.scaling_factor == 1.15258426
    pixels = clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    torch.testing.assert_close(mean, vae.module.encode(pixels).latent_dist.mean.transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert vae.decode_clips(mean * vae.scaling_factor, 1).shape == clips.shape
    assert vae.decode_image(mean[:, 0]).shape == (2, 3, 16, 16)


def test_image_vae_encodes_and_decodes_clips_frame_by_frame(tmp_path: Path) -> None:
    vae = load_vae(save_tiny_vae(tmp_path))
    clips = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, _ = vae.encode_clips(clips)
    torch.testing.assert_close(mean[1, 2], vae.encode(clips[1, 2:])[0][0], atol=1e-5, rtol=1e-4)
    scaled = mean * vae.scaling_factor
    difference = vae.decode_clips(scaled, 2)[1, 2].int() - vae.decode(scaled[1, 2:])[0].int()
    assert difference.abs().max() <= 1  # another batch rounds otherwise
