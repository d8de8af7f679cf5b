"""The text encoder: turns captions into embeddings of their tokens, with a CLIP or T5 model of transformers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError
from ..settings import TextSettings
from .checkpoints.published import load_published
from .files.open_clip import text_model
from .files.text import ENCODERS, find_text_encoder, naming_text
from .vae import DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextEncoder:
    """Embed captions, padded or cut to max_length tokens; no token is masked.

    layer=-1 gives the last hidden state; -2 gives the input of the last layer, as Stable Diffusion 2 and VideoCrafter
    use OpenCLIP-H. Either has passed the encoder's final norm.
    """

    module: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    layer: int
    max_length: int

    @torch.inference_mode()
    def encode(self, captions: list[str]) -> Tensor:
        """Return (N, max_length, width), float32.

        Encodes all captions at once on a GPU. On a CPU it encodes one by one, because rounding there depends on the
        size of the batch.
        """
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )["input_ids"].to(self.module.device)
        parts = tokens.split(1) if self.module.device.type == "cpu" else [tokens]
        return torch.cat([self._embed(part) for part in parts])

    def _embed(self, tokens: Tensor) -> Tensor:
        if self.layer == -1:
            return self.module(input_ids=tokens).last_hidden_state.float()
        states = self.module(input_ids=tokens, output_hidden_states=True).hidden_states
        # T5 has normalised only its last state; CLIP has normalised none
        return final_norm(self.module)(states[self.layer]).float()


def final_norm(module: "PreTrainedModel") -> torch.nn.Module:
    """Return the norm after the last layer."""
    return [part for name, part in module.named_modules() if name.split(".")[-1] == "final_layer_norm"][-1]


def load_text_encoder(text: TextSettings, device: str | torch.device = "cpu") -> TextEncoder:
    """Load the encoder of `text.path`, frozen. Raises UserError."""
    import transformers  # slow import

    assert text.path is not None
    files = find_text_encoder(text.path, text.tokenizer)
    transformers.utils.logging.disable_progress_bar()
    with naming_text(text.path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(files.tokenizer, local_files_only=True)
        if files.encoder.is_file():
            module: Any = text_model(load_published(files.encoder), str(files.encoder))
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # as open_clip pads
        else:
            kind: Any = getattr(transformers, ENCODERS[files.config["model_type"]])
            module = kind.from_pretrained(
                files.encoder, dtype=DTYPES[text.dtype], use_safetensors=True, local_files_only=True
            )
    torch.nn.Module.to(module, DTYPES[text.dtype])  # not module.to(), which transformers wraps without types
    longest = getattr(module.config, "max_position_embeddings", None)
    if longest is not None and text.max_length > longest:
        raise UserError(f"text.max_length = {text.max_length}: {text.path} reads only {longest} tokens; set {longest}")
    return TextEncoder(module.eval().requires_grad_(False).to(device), tokenizer, text.layer, text.max_length)
