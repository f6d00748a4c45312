"""The letter's token against what tokenizers of three kinds make of whole continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actstore.engine.attribution.option_tokens import PromptTokenizer, TooLong
from actstore.engine.inputs.questions import Query
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(*pieces: str, bos: bool = True) -> TextTokenizer:
    """A BPE as Llama's: "▁" for blanks and in front, bytes for what is unknown, `pieces` of two characters merged."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "<s>", *BYTES, "▁", *letters, *pieces])}
    merges = [(piece[0], piece[1:]) for piece in pieces]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>"))


def byte_level(*pieces: str) -> TextTokenizer:
    """A BPE as GPT-2's, with `pieces` such as "ĠA" merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(p[0], p[1:]) for p in pieces]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def read(
    tokenizer: TextTokenizer, prompt: str, too_long: TooLong = "cut", context: int | None = None
) -> tuple[str, list[str], bool, int]:
    """What is read of a prompt with options A, B, C, as pieces; the letters' pieces; whether as text; how much was cut."""
    made = PromptTokenizer(tokenizer, context=context, n_vocabulary=1000, too_long=too_long)
    (found,) = made.prompts(Query("q", (prompt,), ("A",), (("A", "B", "C"),))) or [None]
    assert found is not None
    pieces = tokenizer._tokenizer.convert_ids_to_tokens
    return "".join(pieces(found.ids.tolist())), pieces(list(found.option_tokens)), found.as_text, found.n_cut


def test_byte_level_letters_come_with_their_blank_where_a_blank_is_due() -> None:
    tokenizer = byte_level("ĠA", "ĠB", "ĠC")
    assert read(tokenizer, "Response:") == ("Response:", ["ĠA", "ĠB", "ĠC"], True, 0)
    assert read(tokenizer, "Response:\n") == ("Response:Ċ", ["A", "B", "C"], True, 0)


def test_a_blank_at_the_end_belongs_to_the_letter_if_the_tokenizer_says_so() -> None:
    assert read(byte_level("ĠA", "ĠB", "ĠC"), "Response: ") == ("Response:", ["ĠA", "ĠB", "ĠC"], False, 0)
    assert read(byte_level(), "Response: ") == ("Response:Ġ", ["A", "B", "C"], True, 0)


def test_a_blank_that_is_a_token_of_its_own_is_read_before_the_letter() -> None:
    assert read(byte_level(), "Response:") == ("Response:Ġ", ["A", "B", "C"], False, 0)


def test_sentencepiece_letters_are_those_of_a_word_not_of_the_bare_letter() -> None:
    tokenizer = sentencepiece("▁A", "▁B", "▁C")
    assert read(tokenizer, "Response:") == ("<s>▁Response:", ["▁A", "▁B", "▁C"], True, 0)
    assert read(tokenizer, "Response: ") == ("<s>▁Response:", ["▁A", "▁B", "▁C"], False, 0)
    assert read(tokenizer, "Response:\n")[1] == ["A", "B", "C"]


def test_where_only_some_letters_have_a_token_with_their_blank_the_bare_ones_are_taken() -> None:
    """As in a vocabulary of 512: after ":" come "▁", "▁B", "▁", which does not tell A from C."""
    assert read(sentencepiece("▁B"), "Response:") == ("<s>▁Response:", ["A", "B", "C"], True, 0)


@pytest.mark.parametrize("prompt", ["是？\n回答：", "Ответ:", "الإجابة:", "Réponse :", "高いのは?\n回答："])
def test_text_outside_the_vocabulary_is_read_as_bytes(prompt: str) -> None:
    text, letters, _, _ = read(sentencepiece("▁A", "▁B", "▁C", bos=False), prompt)
    assert all(f"<0x{byte:02X}>" in text for byte in prompt.split("\n")[-1].encode() if byte > 127)
    blank = "" if prompt.endswith("：") else "▁"  # Chinese and Japanese put none
    assert letters == [f"{blank}{letter}" for letter in "ABC"]


def test_a_letter_merged_with_what_precedes_it_takes_it_along() -> None:
    tokenizer = byte_level(":A", ":B", ":C")
    assert read(tokenizer, "回:\n:")[1] == ["A", "B", "C"], "a blank keeps them apart"
    merged = sentencepiece("▁A", "▁B", "▁C", ":▁")
    text, letters, as_text, _ = read(merged, "Answer:")
    assert (len(set(letters)), as_text) == (3, text == "<s>▁Answer:")


def test_letters_without_tokens_of_their_own_are_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "Response:": 1, "A": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    with pytest.raises(
        InvalidInputError, match=r"Query 'q', prompt 1, has options A, B, C that do not begin with distinct tokens"
    ):
        read(made, "Response:")


def test_a_long_prompt_is_cut_at_its_beginning_skipped_or_refused() -> None:
    tokenizer = sentencepiece("▁A", "▁B", "▁C")
    query = Query("q", ("Who is it? Response:",), ("A",), (("A", "B", "C"),))
    n_tokens = len(tokenizer.encode([query.prompts[0]])[0]) + 1
    assert read(tokenizer, query.prompts[0], context=n_tokens)[3] == 0
    assert read(tokenizer, query.prompts[0], context=9) == ("<s>esponse:", ["▁A", "▁B", "▁C"], True, n_tokens - 9)
    skipping = PromptTokenizer(tokenizer, context=9, n_vocabulary=1000, too_long="skip")
    assert skipping.prompts(query) is None
    with pytest.raises(
        InvalidInputError, match=rf"has {n_tokens} tokens, and the model reads at most 9\. .*`too_long=\"cut\"`"
    ):
        read(tokenizer, query.prompts[0], "refuse", 9)
    with pytest.raises(InvalidInputError, match="Expected `too_long` to be one of cut, skip, refuse, found 'crop'"):
        read(tokenizer, "Response:", "crop")  # type: ignore[arg-type]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    made = PromptTokenizer(sentencepiece(), context=None, n_vocabulary=20, too_long="cut")
    with pytest.raises(InvalidInputError, match="below the model's vocabulary of 20"):
        made.prompts(Query("q", ("Response:",), ("A",), (("A", "B"),)))


def test_the_tiny_models_letters_come_after_the_prompts_own_tokens(tiny_model: Path) -> None:
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(tiny_model))
    own = tokenizer._tokenizer.convert_ids_to_tokens(tokenizer.encode(["the fox:"])[0].tolist())
    text, letters, as_text, _ = read(tokenizer, "the fox:")
    assert text.startswith("<s>" + "".join(own))
    assert len(set(letters)) == 3
    assert as_text == (text == "<s>" + "".join(own))
