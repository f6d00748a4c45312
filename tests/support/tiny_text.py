"""A small Llama with a byte-level tokenizer, and texts for it: what most tests capture. Not a test module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "le renard brun saute par-dessus le chien paresseux",
    "def add(a, b):\n    return a + b\n",
    "naïve café — 東京 😀",
    "one two three four five six seven eight nine ten",
]


def make_texts(n: int) -> list[str]:
    """`n` texts of different lengths, the same every time."""
    return [" ".join(SENTENCES[(i + j) % len(SENTENCES)] for j in range(1 + i % 7)) for i in range(n)]


def save_tokenizer(folder: Path, n_vocabulary: int = 400) -> None:
    """A byte-level BPE that opens every text with `<s>`, saved as Hugging Face saves one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocabulary,
        special_tokens=["<s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(make_texts(40), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")
    fast.save_pretrained(folder)


def save_llama(folder: Path, seed: int = 0, max_shard_size: str | None = None, **overrides: int) -> None:
    """A two-layer Llama of width 16 with 24 neurons a layer; with `max_shard_size` in several files."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0,
    }  # fmt: skip
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    LlamaForCausalLM(LlamaConfig(**shape | overrides)).save_pretrained(folder, **shards)
