"""Nouns of a text, by word lists and by taggers that are made to stand there."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from actstore.engine.multimodal.nouns import content_words, noun_finder
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "There are two Red circles and a red well-known kite's tail; a naïve 東京."


def nouns_of(how: str, text: str = TEXT) -> list[str]:
    return [word.word for word in noun_finder(how).first_of_each(text)]


def test_content_words() -> None:
    assert nouns_of("content") == ["red", "circles", "well-known", "kite's", "tail", "naïve", "東京"]
    assert [TEXT[word.start : word.stop] for word in content_words(TEXT)][:3] == ["Red", "circles", "red"]
    assert content_words("It's there, isn't it? It’s a …") == []


def test_a_list_of_nouns(tmp_path: Path) -> None:
    path = tmp_path / "nouns.txt"
    path.write_text("circle  # and not circles\nCIRCLES\nstop sign\nsign\n\n", encoding="utf-8")
    assert nouns_of(str(path)) == ["circles"]
    assert nouns_of(str(path), "A Stop sign, a sign, signs.") == ["stop sign", "sign"]
    assert noun_finder(str(path)).name == f"the 4 words of {path}"


def test_a_list_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"auto, spacy, nltk, content, or read from a file.*'verbs' is neither"):
        noun_finder("verbs")
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    with pytest.raises(InvalidInputError, match="lists no noun"):
        noun_finder(str(empty))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_taggers_are_taken_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spacy", "nltk"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert noun_finder("auto").name.startswith("all words but")
    with pytest.raises(InvalidInputError, match="Nouns by nltk need NLTK with its part-of-speech tagger's data"):
        noun_finder("nltk")

    def tag(words: list[str]) -> list[tuple[str, str]]:
        return [(word, "NNS" if word.endswith("s") else "JJ") for word in words]

    stand_in(monkeypatch, "nltk", pos_tag=tag)
    assert nouns_of("auto") == ["circles", "kite's"]
    assert noun_finder("auto").name == "NLTK's tagger"

    def parse(text: str) -> list[Any]:
        at = text.index("kite's")
        return [SimpleNamespace(text="kite", idx=at, pos_="NOUN"), SimpleNamespace(text="'s", idx=at + 4, pos_="PART")]

    pipeline = type("Pipeline", (), {"meta": {"name": "core"}, "__call__": staticmethod(parse)})()
    stand_in(monkeypatch, "spacy", load=lambda name: pipeline)
    stand_in(monkeypatch, "spacy.util", get_installed_models=lambda: ["de_core", "en_core_web_sm"])
    assert nouns_of("auto") == ["kite"]
    assert noun_finder("spacy").name == "spaCy, core"


def test_a_tagger_without_its_data_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_data(words: list[str]) -> Any:
        raise LookupError("Resource not found")

    monkeypatch.setitem(sys.modules, "spacy", None)
    stand_in(monkeypatch, "nltk", pos_tag=no_data)
    assert noun_finder("auto").name.startswith("all words but")
