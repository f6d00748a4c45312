"""Texts cut without a tokenizer library: the same tokens as with it, for each kind of tokenizer that is known."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError
from actstore.store.layout import TOKENIZER_KEY
from actstore.store.model.tokenizer import StoredTokenizer, Vocabulary
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = ["The quick brown fox doesn't jump 12345 times.\n\n  if x == 3:\n\treturn 'y'\n", "Où est le café? 東京 naïve e\u0301",
         "the cat's hat, the bat’s mat; that is that."] * 3  # fmt: skip
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(*steps: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    trainer.special_tokens = ["<s>"]
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def gpt_2() -> Tokenizer:
    return byte_level()


def llama_3() -> Tokenizer:
    return byte_level(pre_tokenizers.Split(Regex(LLAMA_3), "isolated"))


def digits() -> Tokenizer:
    tokenizer = byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(" ", "isolated"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


def sentencepiece(scheme: str, *, split: bool) -> Tokenizer:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    train(tokenizer, trainers.BpeTrainer(vocab_size=300))
    state = tokenizer.get_vocab(with_added_tokens=False)
    vocabulary = {piece: i for i, piece in enumerate(["<s>", *pieces, *sorted(set(state) - {"<s>"}, key=state.get)])}  # type: ignore[arg-type]
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    fresh = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    fresh.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    fresh.add_special_tokens(["<s>"])
    return fresh


def llama_2() -> Tokenizer:
    tokenizer = sentencepiece("never", split=False)
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens([AddedToken("đem", normalized=False), AddedToken("đ", normalized=False)])
    tokenizer.add_tokens([AddedToken("<l>", lstrip=True, normalized=False), AddedToken("cat", normalized=True)])
    tokenizer.add_tokens([AddedToken("<r>", rstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("hat", single_word=True, normalized=False)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": gpt_2, "llama-3": llama_3, "digits": digits, "llama-2": llama_2,
    "gpt-2 added": lambda: with_added(gpt_2()), "llama-2 added": lambda: with_added(llama_2()),
    "digits added": lambda: with_added(digits()), "first": lambda: sentencepiece("first", split=False),
    "always": lambda: sentencepiece("always", split=True),
}  # fmt: skip
KNOWN: dict[str, tuple[Tokenizer, StoredTokenizer]] = {}


def both(kind: str) -> tuple[Tokenizer, StoredTokenizer]:
    """A tokenizer, and the same read from the files of a store."""
    if kind not in KNOWN:
        tokenizer = KINDS[kind]()
        wrapped = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"))
        folder = Folder(f"memory://{uuid.uuid4()}/store", read_only=False)
        folder.write(TOKENIZER_KEY, (wrapped.to_json() or "").encode())
        KNOWN[kind] = tokenizer, StoredTokenizer(folder, wrapped.vocabulary())
    return KNOWN[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(st.one_of(st.text(max_size=40), st.text("abthe cT'sd 1239\n\t.,é東\u0301\u2581\x1c", max_size=60)))
@example(TEXTS[0])
@example(TEXTS[1])
@example("the <s> cat <s>sat")
@example("  two   spaces  ")
@example("")
@example("x <l> y<l>\u2003<r> z <r>\x1c <l><r> đem đ hat hats ĐEM cat Cat concatenate chat the<r>")
@example("\n <l>\n\n<l><r>  ")
def test_texts_are_tokenised_as_by_the_tokenizer(kind: str, text: str) -> None:
    tokenizer, stored_tokenizer = both(kind)
    assert stored_tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_what_is_not_known_is_refused() -> None:
    tokenizer = gpt_2()
    for change, said in (
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "a pre-tokenizer 'UnicodeScripts', which is not known here"),
        ({"normalizer": {"type": "Nmt"}}, "a normalizer 'Nmt'"),
        ({"model": {"type": "WordPiece"}}, "a model 'WordPiece'"),
    ):
        state = json.loads(tokenizer.to_str()) | change
        folder = Folder(f"memory://{uuid.uuid4()}/store", read_only=False)
        folder.write_json(TOKENIZER_KEY, state)
        wrapped = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>"))
        with pytest.raises(InvalidInputError, match=said):
            StoredTokenizer(folder, wrapped.vocabulary()).encode("the cat")


def stored(tokenizer: Tokenizer, **names: str) -> StoredTokenizer:
    wrapped = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))
    folder = Folder(f"memory://{uuid.uuid4()}/store", read_only=False)
    folder.write(TOKENIZER_KEY, (wrapped.to_json() or "").encode())
    return StoredTokenizer(folder, wrapped.vocabulary())


def end_of_word(*, byte_level: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.decoder = decoders.BPEDecoder()
    return train(tokenizer, trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>"))


def continuing() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    return train(tokenizer, trainers.BpeTrainer(vocab_size=300, continuing_subword_prefix="##"))


def wordpiece() -> Tokenizer:
    pieces = ["[UNK]", "the", "walk", "wal", "##king", "##ing", "##s", "##k", "hat"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def whole_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "hat": 2, "walking": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (end_of_word, "{} "),
        (lambda: end_of_word(byte_level=True), "{} "),
        (continuing, " {}"),
        (wordpiece, " {}"),
        (whole_words, " {}"),
    ],
    ids=["end of word", "end of word in bytes", "continued", "wordpiece", "words"],
)
@pytest.mark.parametrize("word", ["the", "hat", "brown", "walking", "naïve", "東京", "t"])
def test_a_word_is_its_tokens_where_spaces_are_marks(make: Callable[[], Tokenizer], form: str, word: str) -> None:
    tokenizer = make()
    expected = tokenizer.encode(word, add_special_tokens=False).ids
    stored_tokenizer = stored(tokenizer)
    # What has no piece is unknown to some models, and left out by others.
    is_spelled = b"".join(stored_tokenizer.vocabulary.bytes[token] for token in expected).decode() == form.format(word)
    assert stored_tokenizer.encode_word(form.format(word)) == (expected if is_spelled else [])
    assert is_spelled or word not in ("the", "hat")
    with pytest.raises(InvalidInputError, match="which is not known here"):
        stored_tokenizer.encode(f"the {word}")


def test_an_added_word_is_one_token_wherever_it_stands() -> None:
    tokenizer = stored(with_added(gpt_2()))
    token = tokenizer.vocabulary.ids["đem".encode()]
    assert tokenizer.encode_word("đem") == [token]
    assert tokenizer.encode_word(" đem")[-1] == token
    assert tokenizer.vocabulary.bytes[token] == "đem".encode()


def test_only_a_piece_that_is_a_byte_gives_way_to_another_with_the_same_bytes() -> None:
    table = pa.table({
        "token": [0, 1, 2], "piece": ["<0x41>", "A", "<0x42>"], "bytes": [b"A", b"A", b"<0x42>"], "special": [False] * 3
    })  # fmt: skip
    assert Vocabulary(table).ids == {b"A": 1, b"<0x42>": 2}
