"""Tiny masked models with a tokenizer each: a BERT of words, and an ESM of amino acids. Not a test module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    PreTrainedTokenizerFast,
)

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    "the", "capital", "of", "france", "italy", "is", "paris", "rome", "lies", "in", "a", "big", "city", ".", "A", "B", "C",
    "who", "?", "say", ":", "answer",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO"


def save_bert(folder: Path, *, tied: bool = True) -> Path:
    """Two layers of 24 neurons, width 16, context 32."""
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def save_esm(folder: Path, *, rotary: bool = True) -> Path:
    """Two layers of 24 neurons, width 16, context 40; embeddings are rescaled by the share of masks, as those of ESM-2."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, ".", "-", "<null_1>", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(pieces), mask_token_id=pieces.index("<mask>"), pad_token_id=1, hidden_size=16, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=42, token_dropout=True,
        position_embedding_type="rotary" if rotary else "absolute", emb_layer_norm_before=False, initializer_range=0.5,
    )  # fmt: skip
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder
