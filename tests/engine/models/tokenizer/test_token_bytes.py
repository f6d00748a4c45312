"""The bytes of a document's tokens are the document, for every class of tokenizer that transformers has.

Held against the document itself, and what a class changes by its own `decode`: lower case, accents, spaces.
"""

from __future__ import annotations

import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tokenizer_kinds import (
    SHORT,
    TEXTS,
    build,
    byte_level_bpe,
    classes,
    metaspace_bpe,
    suffix_bpe,
    word_level,
    wordpieces,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    CLIPTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from actstore.engine.models.tokenizer.fast_bytes import byte_alphabet
from actstore.engine.models.tokenizer.load import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

UNBUILT = {
    "BioGptTokenizer", "CpmAntTokenizer", "CpmTokenizer", "CpmTokenizerFast", "FSMTTokenizer",
    "FastSpeech2ConformerTokenizer", "FlaubertTokenizer", "RoFormerTokenizer", "SiglipTokenizer", "TapasTokenizer",
    "XLMTokenizer",
}  # fmt: skip
"""Classes that need a library that is not installed here; where one is, the class has to pass too."""
NOT_OF_TEXTS = {"LayoutLMv2Tokenizer", "LayoutLMv3Tokenizer", "LayoutXLMTokenizer", "UdopTokenizer"}
"""Classes that read words with their places on a page, and refuse a text."""
UNSPELLED = {"VitsTokenizer"}
"""Classes whose tokens are not a text's alone: a blank stands between any two."""
DROPPING = {"ClvpTokenizer", "SiglipTokenizer"}
"""Classes that leave out parts of a text, such as signs and what is not Latin: their tokens are what they decode to."""
DECODES_WRONGLY = {"DiaTokenizer", "FSMTTokenizer", "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"}
"""Classes whose own `decode` gives no bytes, another language, or letters that repeat but once."""


WHOLE = (
    "GPT2Tokenizer", "Qwen2Tokenizer", "ByT5Tokenizer", "PerceiverTokenizer", "DiaTokenizer", "WhisperTokenizer",
    "GPTNeoXTokenizer", "CohereTokenizer", "GemmaTokenizer", "GPTNeoXJapaneseTokenizer", "MyT5Tokenizer",
)  # fmt: skip
"""Classes that must give back every byte."""
LED = ("T5Tokenizer", "LlamaTokenizer", "XLMRobertaTokenizer", "M2M100Tokenizer", "MarianTokenizer", "GPTSw3Tokenizer")
"""Classes that must give back every byte behind the space that they put before a text."""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def joined(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    contents = tokenizer.vocabulary()["bytes"].to_pylist()
    return b"".join(contents[i] for i in ids).decode(errors="replace")


def squeezed(text: str) -> str:
    return "".join(text.split())


def folded(text: str) -> str:
    return squeezed("".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c)))


def likeness(text: str, found: str) -> str:
    """How much of a text its tokens give back: all, all behind one space, all but spaces, all but case and accents."""
    if found in (text, f" {text}"):
        return "exact" if found == text else "led"
    return "squeezed" if squeezed(found) == squeezed(text) else "folded" if folded(found) == folded(text) else "wrong"


def read(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The texts that the vocabulary can spell, with their tokens."""
    odd = {tokenizer.unknown, *tokenizer.special_ids}
    encoded = ((text, ids.tolist()) for text, ids in zip(texts, tokenizer.encode(texts), strict=True))
    return [(text, ids) for text, ids in encoded if ids and not odd & set(ids)]


def check_class(name: str, wrapped: TextTokenizer) -> str:
    """The least likeness over all texts, after holding tokens against what the class itself decodes."""
    found = read(wrapped, TEXTS + SHORT)
    assert found, f"{name} spells none of the texts"
    worst: list[str] = []
    for text, ids in found:
        said = joined(wrapped, ids)
        own = wrapped._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if name not in DECODES_WRONGLY:
            assert squeezed(said) == squeezed(own), (name, text)
        if name not in DROPPING:
            worst.append(likeness(text, said))
            assert worst[-1] != "wrong", (name, text, said)
    order = ("exact", "led", "squeezed", "folded")
    return max(worst, key=order.index, default="as decoded")


def test_every_class_of_tokenizer_gives_back_its_documents(tmp_path: Path) -> None:
    result: dict[str, str] = {}
    for name, kind in classes().items():
        if name in {"CanineTokenizer", *UNSPELLED}:
            continue
        (folder := tmp_path / name).mkdir()
        try:
            wrapped = TextTokenizer(build(name, kind, folder))
        except Exception as error:
            result[name] = f"not built: {' '.join(str(error).split())[:90]}"
            continue
        result[name] = check_class(name, wrapped)
    for name, outcome in result.items():
        print(f"{name:<32}{outcome}")
    unbuilt = {name for name, outcome in result.items() if outcome.startswith("not built")}
    assert unbuilt <= UNBUILT | NOT_OF_TEXTS
    assert len(result) - len(unbuilt) >= 60
    assert {result[name] for name in WHOLE} == {"exact"}
    assert {result[name] for name in LED} == {"led"}


def fast(tokenizer: Tokenizer, **names: str) -> TextTokenizer:
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


def bpe(parts: tuple[dict[str, int], list[tuple[str, str]]], **options: Any) -> Tokenizer:
    return Tokenizer(models.BPE(*parts, **options))


def gpt_2() -> Tokenizer:
    tokenizer = bpe(byte_level_bpe())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama_2() -> Tokenizer:
    tokenizer = bpe(metaspace_bpe(), byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.mark.parametrize("with_normalizer", [False, True])
def test_words_added_to_a_byte_level_tokenizer_are_their_own_text(with_normalizer: bool) -> None:
    tokenizer = gpt_2()
    if with_normalizer:
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.ByteLevel(), None  # type: ignore[assignment]
    tokenizer.add_tokens(["đemo", "naïvely", "Ökologie", "<think>", "<｜fim▁hole｜>"])
    text = "we đemo it naïvely: <think> die Ökologie<｜fim▁hole｜> <0x41> \n x"
    wrapped = fast(tokenizer)
    assert joined(wrapped, wrapped.encode([text])[0]) == text
    assert "đemo" in wrapped.vocabulary()["text"].to_pylist()


def test_a_word_that_was_trained_as_an_added_one_is_its_own_text() -> None:
    vocabulary, merges = byte_level_bpe()
    tokenizer = bpe(({"đemo": 0} | {p: i + 1 for p, i in vocabulary.items()}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens(["đemo"])
    wrapped = fast(tokenizer)
    assert wrapped.vocabulary()["text"][0].as_py() == "đemo"


def test_runs_of_spaces_that_are_listed_as_added_stay_spaces() -> None:
    # Gemma lists runs of its mark for spaces among the added tokens; they come from merges.
    vocabulary, merges = metaspace_bpe()
    tokenizer = bpe((vocabulary | {"▁▁": len(vocabulary)}, [*merges, ("▁", "▁")]), byte_fallback=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False)])
    wrapped = fast(tokenizer)
    ids = wrapped.encode(["at  "])[0]
    assert len(vocabulary) in ids
    assert joined(wrapped, ids) == "at  "


def test_an_added_word_takes_along_the_space_that_the_normaliser_puts_before_it() -> None:
    tokenizer = llama_2()
    tokenizer.add_tokens([AddedToken("zebra", normalized=True), AddedToken("gnu", normalized=False)])
    wrapped = fast(tokenizer)
    assert joined(wrapped, wrapped.encode(["the zebra hat"])[0]) == " the zebra hat"
    assert squeezed(joined(wrapped, wrapped.encode(["the gnu hat"])[0])) == "thegnuhat"


@pytest.mark.parametrize("piece", ["<0xZZ>", "<0x+A>", "<0xé1>", "<0x 1>"])
def test_what_only_looks_like_a_byte_is_text(piece: str) -> None:
    vocabulary, merges = metaspace_bpe()
    pieces = {"<unk>": 0, piece: 1} | {p: i + 2 for p, i in vocabulary.items()}
    wrapped = TextTokenizer(LlamaTokenizer(vocab=pieces, merges=merges))
    contents = wrapped.vocabulary()["bytes"].to_pylist()
    assert contents[1] == piece.encode()
    assert contents[wrapped._tokenizer.convert_tokens_to_ids("<0xE6>")] == b"\xe6"
    assert joined(wrapped, wrapped.encode(["東 hat"])[0]) == " 東 hat"


def test_a_vocabulary_without_byte_fallback_spells_no_bytes() -> None:
    wrapped = fast(Tokenizer(models.WordLevel({"[UNK]": 0, "<0x41>": 1, "a": 2}, unk_token="[UNK]")), unk_token="[UNK]")
    assert wrapped.vocabulary()["bytes"][1].as_py().strip() == b"<0x41>"


def test_byte_tokenizers_of_python_spell_bytes() -> None:
    wrapped = TextTokenizer(ByT5Tokenizer())
    text = "über 東京 \x01\x7f"
    assert joined(wrapped, wrapped.encode([text])[0]) == text
    table = wrapped.vocabulary()
    assert table["bytes"][ord("A") + 3].as_py() == b"A"
    assert table["special"].to_pylist()[:3] == [True, True, False]
    assert table["text"][259].as_py() == "<extra_id_0>"


@pytest.mark.slow
def test_a_code_point_is_its_character_and_half_a_pair_none() -> None:
    wrapped = TextTokenizer(CanineTokenizer())
    table = wrapped.vocabulary()
    assert joined(wrapped, wrapped.encode(["über 東京 😀"])[0]) == "über 東京 😀"
    assert table["bytes"][0xD800].as_py() == b""
    assert table["special"][0xE000].as_py() is True


@pytest.mark.parametrize("prefix", ["##", "~"])
def test_what_continues_a_word_is_marked_as_the_model_marks_it(prefix: str) -> None:
    pieces = ["[UNK]", *wordpieces(prefix)]
    tokenizer = Tokenizer(
        models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]", continuing_subword_prefix=prefix)
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix=prefix)
    wrapped = fast(tokenizer, unk_token="[UNK]")
    assert joined(wrapped, wrapped.encode(["walking the hats, 東京"])[0]) == " walking the hats , 東京"


def test_a_vocabulary_with_few_continuing_pieces_is_wordpiece_still() -> None:
    # Taken for one of whole words before, where fewer than a hundredth of the pieces began with ##.
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(300)), "walk", "##ing"]
    wrapped = TextTokenizer(BertTokenizer(vocab={p: i for i, p in enumerate(pieces)}))
    assert joined(wrapped, wrapped.encode(["walking w1"])[0]) == " walking w1"


def test_words_need_spaces_and_characters_need_none() -> None:
    words, letters = fast(word_level(), unk_token="[UNK]"), fast(word_level(characters=True), unk_token="[UNK]")
    assert joined(words, words.encode(["the quick fox"])[0]) == " the quick fox"
    assert joined(letters, letters.encode(["fox"])[0]) == "fox"


def test_the_end_of_a_word_is_a_space() -> None:
    vocabulary, merges = byte_level_bpe("</w>")
    names = ["<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={p: i for i, p in enumerate([*names, *vocabulary])}, merges=merges)
    tokenizer = bpe(suffix_bpe(), end_of_word_suffix="</w>")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder()
    for wrapped in (TextTokenizer(clip), fast(tokenizer)):
        assert joined(wrapped, wrapped.encode(["the café walks"])[0]) == "the café walks "


def test_every_id_has_a_row_where_ids_leave_gaps() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "hat": 9}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = fast(tokenizer, unk_token="[UNK]")
    assert wrapped.vocabulary().num_rows == 10
    assert joined(wrapped, wrapped.encode(["the hat"])[0]) == " the hat"
    assert wrapped.vocabulary()["bytes"][5].as_py() == b""


def test_the_byte_alphabet_is_the_libraries_own() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert sorted(alphabet.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é \n")
    assert "".join(p for p, _ in pieces) == "".join(alphabet[b] for b in "é \n".encode())
