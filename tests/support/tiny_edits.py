"""Tiny random models whose edits are compared with textbook forms: gated and plain, tied and untied, with biases and without.

Not a test module.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from tiny_text import make_texts, save_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
)

from actstore.engine.capture.api import capture
from actstore.engine.edit.readings import Reader
from actstore.engine.models.load import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Capture

_SIZES = {"vocab_size": 400, "hidden_size": 16, "bos_token_id": 0, "eos_token_id": 1}
_LLAMA = {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "gated-tied": LlamaConfig(**_SIZES, **_LLAMA, max_position_embeddings=64, tie_word_embeddings=True),
    "gated-untied-biases": LlamaConfig(
        **_SIZES, **_LLAMA, max_position_embeddings=64, tie_word_embeddings=False, mlp_bias=True
    ),
    "plain-tied-biases": GPT2Config(
        vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_inner=24, n_positions=64, bos_token_id=0, eos_token_id=1
    ),
    "plain-untied-biases": GPTNeoXConfig(
        **_SIZES, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
NORMED = Olmo2Config(**_SIZES, **_LLAMA, max_position_embeddings=64, pad_token_id=1)
"""A norm follows the feed-forward."""


def make_editable(kind: str, folder: Path) -> tuple[Capture, Reader]:
    """A capture of a tiny model of a kind of `CONFIGS`, or `NORMED`, with what least norm needs; and model and tokenizer.

    Every parameter is drawn anew, so that gains are not 1 and biases not 0.
    """
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS.get(kind, NORMED))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name or "ln_" in name:
                parameter.add_(1.0 if name.endswith("weight") else 0.0)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(12)), encoding="utf-8")
    sites = ("mlp.post", "resid.post")
    return (
        capture(str(folder / "model"), corpus, folder / "store", sites=sites, context=32, max_tokens=300),
        Reader.load(load_model(str(folder / "model")), str(folder / "model")),
    )
