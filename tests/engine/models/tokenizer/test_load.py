"""Text to ids and back: special tokens made explicit, and the bytes each vocabulary piece stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    GenerationConfig,
    GPT2Tokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.engine.models.tokenizer.special_tokens import configured_special_ids, special_ids_of_files
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["the quick brown fox", "naïve café — 東京 😀", "def f():\n\treturn 1\n", " ", "", "<s>", "a<pad>b"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> TextTokenizer:
    return TextTokenizer.load(str(tiny_model))


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "walk", "##ing", "##s", "talk", "the"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return TextTokenizer.load(str(folder))


def test_the_vocabularys_bytes_spell_every_text(tokenizer: TextTokenizer) -> None:
    contents = tokenizer.vocabulary()["bytes"].to_pylist()
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert b"".join(contents[i] for i in ids) == text.encode()


def test_encode_leaves_out_the_special_tokens_that_the_template_names(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.prefix, tokenizer.suffix) == ((0,), ())
    assert 0 not in tokenizer.encode(["the fox"])[0]
    assert tokenizer.begin == 0
    assert tokenizer.special_ids == {0, 1}


def test_an_encoders_template_wraps_and_its_unknown_token_stands_for_text(wordpiece: TextTokenizer) -> None:
    assert (wordpiece.prefix, wordpiece.suffix) == ((2,), (3,))
    assert wordpiece.begin == 2
    assert wordpiece.special_ids == {0, 2, 3, 4}
    assert wordpiece.encode(["walking zebra"])[0].tolist() == [5, 6, 1]
    text = wordpiece.vocabulary()["text"].to_pylist()
    assert [text[5], text[6], text[2]] == [" walk", "ing", "[CLS]"]


def test_the_vocabulary_has_a_row_for_every_id(tokenizer: TextTokenizer) -> None:
    table = tokenizer.vocabulary()
    assert table.column_names == ["token", "piece", "text", "bytes", "special"]
    assert table["token"].to_pylist() == list(range(table.num_rows))
    assert [t for t, s in zip(table["token"].to_pylist(), table["special"].to_pylist(), strict=True) if s] == [0, 1]


def test_use_does_not_change_the_fingerprint_and_another_vocabulary_does(tiny_model: Path, tmp_path: Path) -> None:
    first = TextTokenizer.load(str(tiny_model))
    before = first.fingerprint
    again = TextTokenizer.load(str(tiny_model))
    again._tokenizer(["a", "long text here"], padding=True, truncation=True, max_length=3)
    assert again.fingerprint == before
    state = json.loads(first.to_json() or "")
    state["model"]["merges"] = state["model"]["merges"][:-1]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>")  # type: ignore[no-untyped-call]
    assert TextTokenizer(other).fingerprint != before


def test_truncation_and_padding_saved_with_a_tokenizer_do_not_shorten_texts(tiny_model: Path, tmp_path: Path) -> None:
    # Sentence encoders save their tokenizers with both switched on; a document would be cut, not windowed.
    loaded = TextTokenizer.load(str(tiny_model))
    expected = [ids.tolist() for ids in loaded.encode(TEXTS)]
    loaded._tokenizer._tokenizer.enable_truncation(3)
    loaded._tokenizer._tokenizer.enable_padding(length=9)
    loaded._tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 3
    again = TextTokenizer.load(str(tmp_path))
    assert [ids.tolist() for ids in again.encode(TEXTS)] == expected
    assert again.fingerprint == loaded.fingerprint


def test_a_folder_without_a_tokenizer_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InvalidInputError, match="Pass one as `tokenizer`") as caught:
        TextTokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_template_that_wraps_in_several_tokens_is_read_whole() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<x>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(["a"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> <x> $A </s>", special_tokens=[("<s>", 0), ("<x>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]
    wrapped = TextTokenizer(fast)
    assert (wrapped.prefix, wrapped.suffix) == ((0, 1), (2,))


def words(*special: str, unk: str | None = None, **names: str) -> TextTokenizer:
    """A tokenizer of words; `special` ones are added as such, the others of `names` take a role."""
    vocabulary = {w: i for i, w in enumerate(["[UNK]", "<s>", "</s>", "<|eot_id|>", "<think>", "the", "hat"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special))
    backend.add_tokens(["<think>"])
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unk or "[UNK]", **names))  # type: ignore[no-untyped-call]


def test_every_token_that_the_tokenizer_marks_special_is_special() -> None:
    marked = words("<|eot_id|>", "[UNK]", bos_token="<s>")
    assert marked.special_ids == {1, 3}
    assert marked.vocabulary()["special"].to_pylist() == [False, True, False, True, False, False, False]
    assert marked.decode([1, 5, 3, 4, 6, 0]) == "the <think> hat [UNK]"


def test_an_unknown_token_with_another_role_is_special_and_padding_is_no_role() -> None:
    assert words(unk="</s>", eos_token="</s>").special_ids == {2}
    assert words(pad_token="[UNK]").special_ids == frozenset()
    assert GPT2Tokenizer().all_special_ids == [GPT2Tokenizer().unk_token_id]  # GPT-2's own state of affairs
    assert TextTokenizer(GPT2Tokenizer()).special_ids == {0}


def test_a_byte_tokenizer_of_python_names_its_special_tokens() -> None:
    assert TextTokenizer(ByT5Tokenizer(extra_ids=2)).special_ids == {0, 1, 259, 260}


def test_a_models_files_name_the_special_ids_of_a_corpus_of_ids(tmp_path: Path) -> None:
    LlamaConfig(bos_token_id=3, eos_token_id=[4, 5], pad_token_id=None).save_pretrained(tmp_path)
    assert special_ids_of_files(str(tmp_path)) == {3, 4, 5}
    GenerationConfig(bos_token_id=3, eos_token_id=[4, 7], pad_token_id=0).save_pretrained(tmp_path)
    assert special_ids_of_files(str(tmp_path)) == {0, 3, 4, 5, 7}
    assert configured_special_ids(LlamaConfig(bos_token_id=-1, eos_token_id=None), None) == frozenset()
