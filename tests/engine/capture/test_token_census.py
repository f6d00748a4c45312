"""What a corpus's tokens say against its tokenizer, before the model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from actstore.engine.capture.plan import PlanSettings, TextPlanner
from actstore.engine.capture.token_census import TokenCensus
from actstore.engine.capture.tokenising import tokenise
from actstore.engine.inputs.documents import Document
from actstore.engine.models.tokenizer.load import TextTokenizer
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["[UNK]", "<s>", "</s>", "<eot>", "the", "fox", "hat"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>", "<eot>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="<s>"))


def said(tokenizer: TextTokenizer, documents: list[Document], *, around: bool = True) -> list[str]:
    census = TokenCensus(tokenizer, *((tokenizer.prefix, tokenizer.suffix) if around else ((), ())))
    for document, ids in tokenise(documents, tokenizer):
        census.observe(document, ids)
    return list(census.conclude("here", len(documents)))


def texts(*contents: str) -> list[Document]:
    return [Document(f"corpus:{i}", text=text) for i, text in enumerate(contents)]


def test_a_corpus_of_unknown_words_is_named_with_its_share_and_an_example(tokenizer: TextTokenizer) -> None:
    found = said(tokenizer, texts("the fox the hat", "der Fuchs und der Hut " * 8))
    assert found == [
        "90.9 % of the corpus's 44 tokens of text are unknown to the tokenizer ('[UNK]'), as in "
        "'der Fuchs und der Hut der Fuchs und der ' of corpus:1. Check that the tokenizer is the one for these texts, or name "
        "another with `tokenizer`."
    ]


@pytest.mark.parametrize("text", ["the fox zebra", "zebra " * 8 + "the " * 8, "zebra " * 15, "<eot> the " * 8])
def test_half_or_few_unknown_tokens_and_special_ones_are_no_reason(tokenizer: TextTokenizer, text: str) -> None:
    assert said(tokenizer, texts(text), around=False) == []


def test_special_tokens_in_a_text_do_not_hide_unknown_ones(tokenizer: TextTokenizer) -> None:
    assert "100.0 % of the corpus's 16 tokens" in said(tokenizer, texts("<eot> zebra " * 16))[0]


def test_ids_count_for_what_is_unknown_and_not_for_what_they_begin_with(tokenizer: TextTokenizer) -> None:
    ids = Document("corpus:0", ids=np.array([1, *[0] * 20, 2]))
    assert [sentence[:7] for sentence in said(tokenizer, [ids])] == ["100.0 %"]


def test_texts_that_hold_the_templates_tokens_are_counted(tokenizer: TextTokenizer) -> None:
    documents = texts("<s> the fox", "the hat", "<s> the fox </s>")
    begin, end = said(tokenizer, documents)
    assert begin.startswith("2 of 3 texts already begin with '<s>', which is put before every text: it is there twice.")
    assert begin.endswith('Pass `begin="never"` to add no special tokens.')
    assert end.startswith("1 of 3 texts already end with '</s>', which is put behind every text")
    assert said(tokenizer, documents, around=False) == []


def test_texts_without_a_token_are_counted() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))  # drops what it has no piece for
    dropping = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert said(dropping, texts("ab", "öl", "ok"))[0].startswith(
        "2 of 3 texts give no token at all, as in 'öl' of corpus:1."
    )
    assert said(dropping, texts("ab", "  ", "")) == []


def test_a_tokenizer_whose_end_is_its_unknown_token_is_not_blamed_for_ends() -> None:
    backend = Tokenizer(models.WordLevel({"<end>": 0, "the": 1}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<end>", eos_token="<end>"))
    assert wrapped.special_ids == {0}
    assert said(wrapped, texts("the <end> " * 40)) == []


@pytest.mark.parametrize(("begin", "n"), [("auto", 2), ("never", 0)])
def test_a_plan_says_it_when_it_is_complete(tokenizer: TextTokenizer, tmp_path: Path, begin: str, n: int) -> None:
    heard: list[str] = []
    folder = Folder(tmp_path, read_only=False)
    settings = PlanSettings(context=8, begin=begin)  # type: ignore[arg-type]
    planner = TextPlanner(settings, "here", tokenizer, n_vocabulary=None, on_warning=heard.append)
    planner.write(texts("<s> the fox </s>"), folder, "corpus")
    assert len(heard) == n
