"""Text encoders with random weights and tokenizers of a few words, in the files in which CLIP and T5 are published."""

import json
from pathlib import Path

import torch

TOKENS = 12  # most that the tiny CLIP reads


def save_tiny_clip(folder: Path, seed: int = 0) -> str:
    """A CLIP text model with vocab.json and merges.txt in `folder`; that as a path for text.path."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = sorted(ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=len(tokens) - 2,
            eos_token_id=len(tokens) - 1,
        )
        CLIPTextModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return str(folder)


def save_tiny_t5(folder: Path) -> str:
    """A T5 encoder and its tokenizer.json in the layout of a whole pipeline: text_encoder/ and tokenizer/."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    tokenizer = Tokenizer(models.Unigram([("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁a", -1), ("▁dog", -2)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    described = {"tokenizer_class": "T5Tokenizer", **special}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(described))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return str(folder)
