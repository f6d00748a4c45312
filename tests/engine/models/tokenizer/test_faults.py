"""Tokenizers that were made up are refused in one sentence; small real ones are not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    DiaTokenizer,
    EsmTokenizer,
    GPT2Tokenizer,
    PerceiverTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError

REAL = {"canine", "dia", "esmc", "esmfold2", "perceiver"}
"""Types whose tokenizer is whole without files: code points, bytes, amino acids."""


def bare(folder: Path, model_type: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(folder)


def load(location: str) -> TextTokenizer:
    """What is loaded; transformers warns of some types that it is told to make up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TextTokenizer.load(location)


def refusal(location: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        load(location)
    said = str(caught.value)
    assert "\n" not in said
    assert "`tokenizer`" in said
    return said


MADE_UP = ("bert", "gpt2", "qwen2", "llama", "t5", "gemma", "mbart", "nllb-moe", "deberta-v2", "splinter", "clip",
           "openai-gpt", "xlnet", "whisper", "pp_formulanet")  # fmt: skip


@pytest.mark.parametrize("kind", MADE_UP)
def test_a_tokenizer_made_up_from_a_configuration_is_refused(kind: str, tmp_path: Path) -> None:
    said = refusal(bare(tmp_path / "model", kind))
    assert "reads no text: its vocabulary of" in said or "No usable tokenizer" in said


@pytest.mark.parametrize("kind", ["mpnet", "reformer", "layoutlmv2", "byt5"])
def test_whatever_transformers_raises_is_one_sentence(kind: str, tmp_path: Path) -> None:
    assert "No usable tokenizer was found" in refusal(bare(tmp_path / "model", kind))


def test_several_tokenizers_in_one_are_refused(tmp_path: Path) -> None:
    said = refusal(bare(tmp_path / "model", "rag"))
    # Older transformers raise over the parts that have no files, before there are several.
    assert "is no single tokenizer" in said or "No usable tokenizer was found" in said


@pytest.mark.parametrize("kind", sorted(REAL - {"canine"}))
def test_a_tokenizer_that_is_whole_without_files_is_used(kind: str, tmp_path: Path) -> None:
    assert TextTokenizer.load(bare(tmp_path / "model", kind)).fault == ""


@pytest.mark.slow
def test_no_type_of_model_gives_a_tokenizer_that_reads_no_text(tmp_path: Path) -> None:
    loaded = set()
    for kind in CONFIG_MAPPING_NAMES:
        location = bare(tmp_path / kind, kind)
        try:
            tokenizer = load(location)
        except InvalidInputError:
            continue
        loaded.add(kind)
        ids = [i for ids in tokenizer.encode(["LAGVS"]) for i in ids.tolist()]
        assert len(ids) == 5, kind
        assert not {tokenizer.unknown, *tokenizer.special_ids} & set(ids), kind
    print("loaded without files:", *sorted(loaded))
    assert loaded <= REAL


def small(pieces: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(["[UNK]", *pieces])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def protein(folder: Path) -> EsmTokenizer:
    path = folder / "amino.txt"
    path.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]))
    return EsmTokenizer(str(path))


SMALL: dict[str, Any] = {
    "nucleotides": lambda folder: small(list("ACGT")),
    "bits": lambda folder: small(list("01")),
    "amino acids": protein,
    "ByT5": lambda folder: ByT5Tokenizer(),
    "ByT5 alone": lambda folder: ByT5Tokenizer(extra_ids=0),
    "Perceiver": lambda folder: PerceiverTokenizer(),
    "Dia": lambda folder: DiaTokenizer(),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_vocabularies_and_bytes_are_real(name: str, tmp_path: Path) -> None:
    SMALL[name](tmp_path).save_pretrained(tmp_path / "saved")
    assert TextTokenizer.load(str(tmp_path / "saved")).fault == ""


def test_a_saved_tokenizer_without_a_word_is_refused(tmp_path: Path) -> None:
    GPT2Tokenizer().save_pretrained(tmp_path)
    assert "holds none that stands for text" in refusal(str(tmp_path))


def test_a_vocabulary_whose_merges_are_missing_is_refused(tmp_path: Path) -> None:
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *(f"Ġw{n}" for n in range(300)), "<|endoftext|>"]
    folder = Path(bare(tmp_path / "model", "gpt2"))
    vocabulary = {p: i for i, p in enumerate(alphabet)}
    GPT2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    assert "there are no merges to make them" in refusal(str(folder))
    characters = {p: i for p, i in vocabulary.items() if not p.startswith("Ġw")} | {"<|endoftext|>": 256}
    GPT2Tokenizer(vocab=characters, merges=[]).save_pretrained(folder)  # one token for each byte
    assert TextTokenizer.load(str(folder)).fault == ""
