"""Substitutes by a masked language model: a tiny one whose likeliest words are planted, with a tokenizer of its own."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from actstore.engine.capture.api import capture
from actstore.engine.graphs.probes.plan import ProbeSettings
from actstore.engine.graphs.probes.rounds import probe
from actstore.engine.graphs.probes.substitutes import MaskedModel, MaskedSubstitutes, masked_substitutes
from actstore.store.errors import InvalidInputError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from actstore.store.reader import Store

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "w30", "w31", "w32", "black", "not", "sat", "paris", "##ing", "##ed", "##s", ".", ",", "café",
         "Mouse", "fox", "quick", "lazy"]  # fmt: skip
BIAS = {
    "cat": 9.0,
    "dog": 8.0,
    "w31": 7.5,
    "##ed": 7.0,
    "##ing": 6.5,
    "w30": 6.0,
    ".": 5.5,
    "paris": 5.0,
    "Mouse": 4.5,
    "w32": 4.0,
    "[SEP]": 9.5,
}


def save_bert(folder: Path, *, uncased: bool = False) -> Path:
    """A random BERT whose output bias drowns everything else."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=uncased, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    plant_bias(model.cls.predictions.decoder.bias, vocabulary, BIAS)
    model.save_pretrained(folder)
    return folder


def plant_bias(bias: torch.Tensor, vocabulary: dict[str, int], expected: dict[str, float]) -> None:
    with torch.no_grad():
        for piece, value in expected.items():
            bias[vocabulary[piece]] = value


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def filler(bert: Path) -> MaskedModel:
    return MaskedModel.load(str(bert), device="cpu")


def ask(filler: MaskedModel, text: str, span: str, k: int = 3, **how: Any) -> list[str]:
    start = text.index(span)
    return filler.substitutes([text], [(start, start + len(span))], k, **how)[0]


def test_words_stand_in_for_words_likeliest_first(filler: MaskedModel, bert: Path) -> None:
    assert ask(filler, "the black sat", " black") == [" cat", " dog", " w31"]
    assert ask(filler, "the black sat", "black ") == ["cat ", "dog ", "w31 "]
    assert ask(filler, "the cat sat", " cat") == [" dog", " w31", " w30"]  # never itself,
    assert ask(filler, "The CAT sat", " CAT") == [" DOG", " W31", " W30"]  # nor in other letters, and capitals stay
    assert ask(filler, "Cat sat", "Cat") == ["Dog", "W31", "W30"]
    assert masked_substitutes(str(bert), ["the black sat"], [(3, 9)], 1, device="cpu") == [[" cat"]]


def test_the_rest_of_a_word_is_replaced_by_rests(filler: MaskedModel) -> None:
    assert ask(filler, "the sats.", "s.", 2) == ["ed", "ing"]
    assert ask(filler, "the cat.", ".", 2) == ["cat", "dog"]  # a sign after a word continues nothing


def test_improbable_words_are_none(filler: MaskedModel) -> None:
    n = len(ask(filler, "the black sat", " black", 100))
    assert 3 < len(ask(filler, "the black sat", " black", 100, least=0.0005)) < n
    assert ask(filler, "the black sat", " black", 100, least=0.9) == []


def test_signs_digits_and_accents_are_words_too(filler: MaskedModel) -> None:
    for text in ("the cat's tail", "x = 1234 + y", "un café noir", "naïve"):
        core = max(text.split(), key=len)
        assert ask(filler, text, core, 1) == ["cat"], text


@pytest.mark.parametrize("span", [" ", "\ufffd", "\n\n"])
def test_what_is_no_word_has_no_substitute(filler: MaskedModel, span: str) -> None:
    assert ask(filler, f"the{span}black", span) == []


def test_many_are_answered_as_one(filler: MaskedModel) -> None:
    texts = [
        "the black sat",
        "the",
        "dog sat the black the cat",
        "the [MASK] sat the black",
        "x" * 300 + " black " + "dog " * 90,
    ]
    spans = [
        (texts[i].rindex(word), texts[i].rindex(word) + len(word))
        for i, word in enumerate(["sat", "the", "cat", "black", "black"])
    ]
    result = filler.substitutes(texts, spans, 4)
    assert result == [filler.substitutes([text], [span], 4)[0] for text, span in zip(texts, spans, strict=True)]
    assert all(len(one) == 4 for one in result)


def test_an_uncased_model_keeps_the_text_s_capitals(tmp_path: Path) -> None:
    filler = MaskedModel.load(str(save_bert(tmp_path, uncased=True)), device="cpu")
    assert ask(filler, "In London now", " London", 2) == [" Cat", " Dog"]
    assert ask(filler, "In CAT now", " CAT", 2) == [" DOG", " W31"]


def test_a_byte_level_model_knows_spaces(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the dog cat ", "dog the cat", "cat dog the"] * 9, trainer)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=AddedToken("<mask>", lstrip=True), **names)
    fast.save_pretrained(tmp_path)
    config = RobertaConfig(
        vocab_size=len(fast), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=42, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = RobertaForMaskedLM(config)
    plant_bias(model.lm_head.bias, fast.get_vocab(), {"Ġdog": 9.0, "cat": 8.0, "Ġcat": 7.0, "dog": 6.0})
    model.save_pretrained(tmp_path)
    filler = MaskedModel.load(str(tmp_path), device="cpu")
    assert ask(filler, "a the b", " the", 2) == [" dog", " cat"]
    assert ask(filler, "a(the b", "the", 2) == ["cat", "dog"]
    assert ask(filler, "the b", "the", 2) == ["dog", "cat"]


def test_substitutes_are_tokens_of_the_other_model(filler: MaskedModel, store: Store) -> None:
    # Its tokens: " cat" 0, " the" 1, " black" 2, "not" 3, "cat " 18, " w30" 30, … and no " dog".
    result = MaskedSubstitutes(filler, store, frozenset({31}))
    ids = np.array([1, 2, 40], np.int32)
    assert result.of(ids, 1, 3) == [0, 30, 32]  # neither the excluded 31 nor " dog", which is no token
    assert result.of(ids, 1, 1) == [0]
    assert result.of_all([(ids, 1), (ids, 0), (ids, 1)], 2) == [[0, 30], [0, 30], [0, 30]]
    assert result.of(np.array([1, 4, 2], np.int32), 1, 3) == []  # half a character
    assert result.of(np.array([31, 2], np.int32), 0, 2) == [0, 30]
    special = pa.array([i == 5 for i in range(store.vocabulary.num_rows)])
    at = store.vocabulary.schema.get_field_index("special")
    store.__dict__["vocabulary"] = store.vocabulary.set_column(at, "special", special)
    result = MaskedSubstitutes(filler, store, frozenset())
    assert result._text(np.array([5, 1, 0], np.int32), 2) == (" the cat", 4, 8)
    assert result.of(np.array([5, 1, 0], np.int32), 0, 3) == []  # a special token is no text


def test_probes_take_them_where_a_model_is_named(tiny_model: Path, corpus: Path, bert: Path, tmp_path: Path) -> None:
    capture(str(tiny_model), corpus, tmp_path / "store", context=32, max_tokens=900)
    settings = ProbeSettings(n_exemplars=6, n_substitutes=2, substitutes_model=str(bert))
    probes = probe(str(tiny_model), tmp_path / "store", neurons=[(0, 3), (1, 0), (1, 7)], settings=settings)
    variants = [v for neuron in probes.neurons for one in probes.of(*neuron) for v in one.variants]
    texts = [probes.store.token_text(int(v.ids[v.position])) for v in variants]
    assert len(set(texts)) > 1
    assert {text.strip().casefold() for text in texts} <= {word.removeprefix("##").casefold() for word in WORDS}
    assert probes.settings["substitutes_model"] == str(bert)


def test_what_fills_no_masks_is_refused(tiny_model: Path, tmp_path: Path, bert: Path, filler: MaskedModel) -> None:
    with pytest.raises(ModelError, match="is a llama, which fills no masks"):
        MaskedModel.load(str(tiny_model))
    with pytest.raises(ModelError, match="there is no folder"):
        MaskedModel.load(str(tmp_path / "nowhere"))
    shutil.copytree(bert, tmp_path / "maskless")
    config = tmp_path / "maskless" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mask_token": None}))
    with pytest.raises(ModelError, match="has no mask token"):
        MaskedModel.load(str(tmp_path / "maskless"))

    class OfIds:
        vocabulary = None
        folder = "ids.actstore"

    with pytest.raises(InvalidInputError, match=r"ids\.actstore was captured from token ids"):
        MaskedSubstitutes(filler, OfIds(), frozenset())  # type: ignore[arg-type]
