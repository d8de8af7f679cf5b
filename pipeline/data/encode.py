"""FRAMES -> LATENTS: the VAE actor of the cache. It holds one VAE and keeps it full across clips."""

import io

import numpy as np
import pyarrow as pa
import torch

from pipeline.schema import ENCODED_SCHEMA
from pipeline.settings import DataSettings, VaeSettings

SD_SCALING_FACTOR = 0.18215  # AutoencoderKL's default, where config.json names none


class EncodeClips:
    """map_batches over actors, one row in, one row out: DECODED_SCHEMA -> ENCODED_SCHEMA.

    A clip's frames become a .npy of its VAE posterior: float16 (2, F, C, h, w), mean and log-variance,
    unscaled.
    """

    def __init__(self, vae: VaeSettings, data: DataSettings, num_cpus: float, num_gpus: float) -> None:
        from pipeline.models.vae import load_vae  # diffusers takes seconds to import

        if num_gpus == 0:
            torch.set_num_threads(max(1, round(num_cpus)))
        self._vae = load_vae(vae.path, vae.dtype, "cuda" if num_gpus > 0 else "cpu")
        self._batch_frames = vae.batch_frames
        self._clip_shape = (data.frames, data.height, data.width, 3)

    def __call__(self, batch: pa.Table) -> pa.Table:
        frames = [value.as_buffer() for value in batch["frames"] if value.is_valid]
        latents = iter(self.encode([np.frombuffer(buffer, np.uint8) for buffer in frames]) if frames else ())
        rows = batch.drop_columns(["frames"]).to_pylist()
        for row in rows:
            row["latent"] = None
            if row["reason"] is None:
                latent = next(latents)
                if np.isfinite(latent).all():
                    row["latent"] = npy_bytes(latent)
                else:
                    row |= {"stage": "encode", "reason": "not_finite", "attempts": 1}
                    row["detail"] = "the VAE gave infinite or undefined values; try --vae.dtype float32"
        return pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA)

    def encode(self, clips: list[np.ndarray]) -> np.ndarray:
        """Posteriors float16 (N, 2, F, C, h, w) of N clips of uint8 frames."""
        frames = torch.from_numpy(np.concatenate(clips).reshape(-1, *self._clip_shape[1:]))
        parts = [torch.stack(self._vae.encode(part)) for part in frames.split(self._batch_frames)]
        posterior = torch.cat(parts, dim=1).half().cpu().numpy()  # (2, N * F, C, h, w)
        posterior = posterior.reshape(2, len(clips), self._clip_shape[0], *posterior.shape[2:])
        return posterior.swapaxes(0, 1)


def npy_bytes(array: np.ndarray) -> bytes:
    """`array` as a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
