"""Find the files of a text encoder in transformers' format, and hash them. Imports no torch.

There are three layouts: config.json, model*.safetensors and the tokenizer's files in one folder; a diffusers pipeline,
which has them in text_encoder/ and tokenizer/; and a checkpoint of VideoCrafter or DynamiCrafter that contains
open_clip's weights (see open_clip), with a tokenizer from elsewhere.
"""

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import UserError
from .paths import CONFIG, hub_folder, local_path, model_config, naming

WEIGHTS_PATTERN = "model*.safetensors"  # one file or several
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",  # with merges.txt: CLIP's
    "merges.txt",
    "spiece.model",  # T5's
)
# model_type in config.json -> class of transformers
ENCODERS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
OPEN_CLIP = "open_clip"  # model_type of an encoder in a checkpoint, which has no config.json
NOISE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")  # do not change embeddings


@dataclass(frozen=True)
class TextFiles:
    """Files of a text encoder and its tokenizer."""

    encoder: Path  # folder, or checkpoint
    tokenizer: Path  # folder
    config: dict[str, Any]  # of the encoder

    @property
    def width(self) -> int:
        """Return the width of an embedding."""
        own = self.config.get("text_config") or self.config
        return int(own["d_model"] if "d_model" in own else own["hidden_size"])

    @property
    def weights(self) -> list[Path]:
        """Return the files of the encoder's weights, sorted by name."""
        if self.encoder.is_file():
            return [self.encoder]
        return sorted(path for path in self.encoder.glob(WEIGHTS_PATTERN) if ".fp16." not in path.name)

    @property
    def tokenizer_files(self) -> list[Path]:
        """Return the files that decide the tokens."""
        return [self.tokenizer / name for name in TOKENIZER if (self.tokenizer / name).is_file()]


def find_text_encoder(path: str, tokenizer_path: str | None = None) -> TextFiles:
    """Find the files of `text.path`: a folder, a hub name, or a checkpoint with `text.tokenizer`. Raises UserError."""
    folder = local_path(path)
    if folder is not None and folder.is_file():
        return _in_checkpoint(path, folder, tokenizer_path)
    names = [CONFIG, WEIGHTS_PATTERN, "model.safetensors.index.json", *TOKENIZER]
    folder = folder or hub_folder(path, [part + name for part in ("", "text_encoder/", "tokenizer/") for name in names])
    with naming_text(path):
        if folder is None:
            raise ValueError("no such folder, nor on the hub")
        encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
        encoder, tokenizer = (encoder if encoder.is_dir() else folder), (tokenizer if tokenizer.is_dir() else folder)
        files = TextFiles(encoder, tokenizer, model_config(encoder / CONFIG, "model_type", ENCODERS))
        if not files.weights:
            raise ValueError(f"no {WEIGHTS_PATTERN} in {encoder}")
        if not any(file.name in ("tokenizer.json", "vocab.json", "spiece.model") for file in files.tokenizer_files):
            raise ValueError(f"no tokenizer.json, vocab.json or spiece.model in {tokenizer}")
    return files


def naming_text(path: str) -> AbstractContextManager[None]:
    """Turn errors inside the block into a UserError that names `text.path`."""
    files = f"{CONFIG}, {WEIGHTS_PATTERN}, tokenizer files"
    remedy = f"give a folder or hub name with a CLIP or T5 model of transformers ({files}), or null for no text"
    return naming("text.path", path, "text encoder", remedy)


def _in_checkpoint(path: str, file: Path, tokenizer_path: str | None) -> TextFiles:
    from ..checkpoints.published import load_published
    from .open_clip import TEXT

    if tokenizer_path is None:
        raise UserError(
            f"text.path = {path}: a checkpoint has no tokenizer; set text.tokenizer to a folder or hub name of CLIP's, "
            "such as openai/clip-vit-large-patch14"
        )
    folder = local_path(tokenizer_path) or hub_folder(tokenizer_path, [*TOKENIZER])
    if folder is None or not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"text.tokenizer = {tokenizer_path}: no tokenizer.json or vocab.json there; give CLIP's")
    with naming_text(path):
        table = load_published(file).get(f"{TEXT}token_embedding.weight")
        if table is None:
            raise ValueError(f"{file} holds no {TEXT}token_embedding.weight")
    return TextFiles(file, folder, {"model_type": OPEN_CLIP, "hidden_size": table.shape[1]})


def text_identity(files: TextFiles) -> str:
    """Hash by SHA-256 all that decides an embedding: the encoder's configuration and weights, the tokenizer's files."""
    digest = hashlib.sha256(json.dumps(_significant(files.config), sort_keys=True).encode())
    for file in [*files.weights, *files.tokenizer_files]:
        status = file.stat()
        digest.update(f"{file.name} {_file_hash(file, status.st_mtime_ns, status.st_size)}\n".encode())
    return digest.hexdigest()


def _significant(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _significant(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in NOISE
    }


@lru_cache(maxsize=64)
def _file_hash(file: Path, changed_ns: int, size: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
