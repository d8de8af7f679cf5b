"""FRAMES -> LATENTS, CAPTIONS -> EMBEDDINGS: an actor that holds the VAE and, with text.path, the text encoder.

It keeps the device full across clips, and still a latent does not depend on the clips that it was encoded with. On a
CPU, where the rounding of a convolution depends on the size of its batch, no batch crosses the end of a clip; on a GPU
all batches have one size, the last filled up. On a CPU the last bits of a latent, and of everything made from it,
depend on the number of threads too, which is cluster.encode.num_cpus. So caches of the same bytes need the same value
there, and the same kind of processor.
"""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ...schema import ENCODED_SCHEMA
from ...settings import DataSettings, TextSettings, VaeSettings
from ...storage.files import write_bytes
from .shards import npy_bytes

log = logging.getLogger("encode")

# pixels of a batch in a CPU's caches; 8 to 16 frames of 64 x 64 are best (benchmarks/results/vae_encode_cpu.json)
CPU_PIXELS = 8 * 64 * 64
GPU_BATCHES = 4  # batches in a call on a GPU: enough that the time between two calls hardly counts


def clips_a_call(vae: VaeSettings, frames: int, num_gpus: float) -> int:
    """How many clips of `frames` frames an actor should get in one call."""
    return max(1, vae.batch_frames * (GPU_BATCHES if num_gpus else 1) // frames)


class EncodeClips:
    """map_batches over actors, one row in, one row out: DECODED_SCHEMA -> ENCODED_SCHEMA.

    A clip's frames become a .npy of its VAE posterior: float16 (2, F, C, h, w), mean and log-variance, unscaled. With
    text.path, its caption, or its class where it has none, becomes a .npy of float16 (tokens, width), and the empty
    caption's is written to the address `null_text`.
    """

    def __init__(
        self,
        vae: VaeSettings,
        data: DataSettings,
        num_cpus: float,
        num_gpus: float,
        text: TextSettings | None = None,
        null_text: str | None = None,
    ) -> None:
        from ...models.files.vae import vae_geometry
        from ...models.vae import compile_encoder, load_vae

        self._clip_frames, self._frame = data.frames, (data.height, data.width, 3)
        self._on_gpu = self._fill_batches = num_gpus > 0
        self.batch_frames = vae.batch_frames
        if self._on_gpu:
            torch.backends.cudnn.benchmark = True  # all batches are of one shape
        else:
            torch.set_num_threads(max(1, round(num_cpus)))
            self.batch_frames = min(self.batch_frames, max(1, CPU_PIXELS // (data.height * data.width)))
        device = "cuda" if self._on_gpu else "cpu"
        self.vae = load_vae(vae.path, vae.dtype, device)
        channels, _ = vae_geometry(vae.path)
        self._latent = (channels, *data.latent_size)
        self._text_encoder = None
        if text is not None and text.path is not None:
            from ...models.text import load_text_encoder

            self._text_encoder = load_text_encoder(text, device)
            if null_text is not None:  # every actor writes the same
                write_bytes(null_text, npy_bytes(self.embed([""])[""]))
        if self._on_gpu and vae.compile:
            compile_encoder(self.vae, torch.zeros(self.batch_frames, *self._frame, dtype=torch.uint8))
        self._host = torch.empty(0, *self._frame, dtype=torch.uint8)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode the frames of each row that has no reason."""
        frames = [np.frombuffer(value.as_buffer(), np.uint8) for value in batch["frames"] if value.is_valid]
        latents = iter(self.encode(frames) if frames else ())
        rows = batch.drop_columns(["frames"]).to_pylist()
        texts = self.embed([row["caption"] or row["label"] for row in rows if row["reason"] is None])
        for row in rows:
            row["latent"] = row["text"] = None
            if row["reason"] is None:
                row |= _payload(next(latents), texts.get(row["caption"] or row["label"]))
        return pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA)

    def embed(self, captions: list[str]) -> dict[str, np.ndarray]:
        """Embeddings float16 (tokens, width) of the captions; {} without a text encoder."""
        different = sorted(set(captions))
        if self._text_encoder is None or not different:
            return {}
        return dict(zip(different, self._text_encoder.encode(different).half().cpu().numpy(), strict=True))

    def encode(self, clips: list[np.ndarray]) -> np.ndarray:
        """Posteriors float16 (N, 2, F, C, h, w) of N clips of uint8 frames.

        On a GPU nothing waits until all batches are under way: while one batch is computed, the frames of the next are
        copied to pinned memory and follow from there. Raises torch.OutOfMemoryError where the GPU has no room for a
        single frame.
        """
        if self.vae.temporal > 1:
            return self._encode_whole(clips)
        count = len(clips) * self._clip_frames
        host = self._host_frames(count)
        out = torch.empty(2, count, *self._latent, dtype=torch.float16, pin_memory=self._on_gpu)
        start = copied = 0
        while start < count:
            clip_end = (start // self._clip_frames + 1) * self._clip_frames
            stop = min(start + self.batch_frames, count if self._fill_batches else clip_end)
            while copied * self._clip_frames < stop:
                own = slice(copied * self._clip_frames, (copied + 1) * self._clip_frames)
                np.copyto(host[own].numpy(), clips[copied].reshape(-1, *self._frame))
                copied += 1
            # after the last clip come frames of earlier calls, which fill the batch up
            frames = host[start : start + self.batch_frames if self._fill_batches else stop]
            try:
                for part, values in zip(out, self.vae.encode(frames), strict=True):
                    part[start:stop].copy_(values[: stop - start].half(), non_blocking=True)
            except torch.OutOfMemoryError:
                self._halve()
                continue
            start = stop
        if self._on_gpu:
            torch.cuda.synchronize()
        return out.numpy().reshape(2, len(clips), self._clip_frames, *self._latent).swapaxes(0, 1)

    def _encode_whole(self, clips: list[np.ndarray]) -> np.ndarray:
        """As encode, with a VAE that sees all frames of a clip together."""
        shape = (1, self._clip_frames, *self._frame)
        found = [self.vae.encode_clips(torch.from_numpy(clip.copy()).view(shape)) for clip in clips]
        return np.stack([torch.cat(posterior).half().cpu().numpy() for posterior in found])

    def _host_frames(self, count: int) -> torch.Tensor:
        """Memory for `count` frames and a batch to fill up the last one; pinned for a GPU, kept from call to call."""
        if len(self._host) < count + self.batch_frames:
            shape = (count + self.batch_frames, *self._frame)
            self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        return self._host

    def _halve(self) -> None:
        """Go on with batches of half the size after the GPU ran out of memory."""
        if self.batch_frames == 1:
            raise torch.OutOfMemoryError("no room for a single frame on the GPU; give the actor one of its own")
        self.batch_frames //= 2
        torch.cuda.empty_cache()
        said = "out of GPU memory with %d frames at once; going on with %d (set vae.batch_frames to spare the try)"
        log.warning(said, self.batch_frames * 2, self.batch_frames)


def _payload(latent: np.ndarray, text: np.ndarray | None) -> dict[str, Any]:
    """Return the columns of ENCODED_SCHEMA that encoding fills in, or that say why it failed."""
    for values, section in ((latent, "vae"), (text, "text")):
        if values is not None and not np.isfinite(values).all():
            detail = f"the encoder of {section}.path gave infinite or undefined values; try --{section}.dtype float32"
            return {"stage": "encode", "reason": "not_finite", "attempts": 1, "detail": detail}
    return {"latent": npy_bytes(latent), "text": None if text is None else npy_bytes(text)}
