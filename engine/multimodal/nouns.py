"""The nouns of a text: by a tagger where one is installed, from a word list, or else all words that are not stop words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
"""Letters of any script, with inner hyphens and apostrophes."""

_ENGLISH: Final = """
    a an the this that these those some any each every either neither no none all both half several many much few more most
    other another such same one two three four five six seven eight nine ten first second last next only own
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
    it its itself they them their theirs themselves who whom whose which what someone something anyone anything everyone
    everything nobody nothing here there where when why how
    am is are was were be been being do does did doing done have has had having can could will would shall should may might
    must ought need let get gets got getting seem seems appear appears show shows showing shown see seen look looks looking
    and or but nor so yet for if then else than because as while until although though since unless whether
    of at by with about against between among into onto through during before after above below to from up down in out on off
    over under again further near next beside besides behind beyond along across around upon within without toward towards
    inside outside not very too just also quite rather really still even ever never always often now once already
    isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't it's there's that's i'm you're we're they're
    s t d ll m o re ve y
"""
STOP_WORDS: Final = frozenset(_ENGLISH.split())
"""English words that name nothing. Numerals are here, `circles` and `red` are not: a colour is a concept, too."""


class Word(NamedTuple):
    """A word of a text, which is at `text[start:stop]`."""

    word: str
    """In lower case."""
    start: int
    stop: int


@dataclass(frozen=True)
class NounFinder:
    """A way to find nouns."""

    name: str
    """In words, for people."""
    find: Callable[[str], list[Word]]
    """All nouns of a text, in their order, each occurrence."""

    def first_of_each(self, text: str) -> list[Word]:
        """Each noun of the text where it first occurs, in the order of the text."""
        seen: dict[str, Word] = {}
        for word in self.find(text):
            seen.setdefault(word.word, word)
        return list(seen.values())


def noun_finder(how: str = "auto") -> NounFinder:
    """The finder named by `how`: auto, a key of `NOUN_FINDERS`, or the path of a file with one noun per line.

    auto is the first of the table that is installed: spaCy with an English pipeline, NLTK with its tagger's data, or content,
    all words but `STOP_WORDS`. Raises `InvalidInputError` for a tagger that is not installed and a list that cannot be read
    or is empty.
    """
    if how == AUTO:
        return next(finder for source in NOUN_FINDERS.values() if (finder := source.load()) is not None)
    if how not in NOUN_FINDERS:
        return _from_file(Path(how))
    source = NOUN_FINDERS[how]
    finder = source.load()
    if finder is None:
        raise InvalidInputError(
            f'Nouns by {how} need {source.needs}, which is not installed. Install it, or choose `nouns="content"`.'
        )
    return finder


def content_words(text: str) -> list[Word]:
    """All words of a text that are not stop words."""
    return [word for word in words(text) if word.word.replace("’", "'") not in STOP_WORDS]


def words(text: str) -> list[Word]:
    """All words of a text."""
    return [Word(match[0].casefold(), *match.span()) for match in WORD.finditer(text)]


def _from_file(path: Path) -> NounFinder:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(
            f"Nouns are found by {', '.join((AUTO, *NOUN_FINDERS))}, or read from a file with one noun per line; "
            f"{str(path)!r} is neither ({reason}). Check `nouns`."
        ) from None
    listed = frozenset(word for line in lines if (word := line.split("#")[0].strip().casefold()))
    if not listed:
        raise InvalidInputError(f'{path} lists no noun. Write one per line, or choose `nouns="content"`.')
    phrase = re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(listed, key=len, reverse=True))) + r")(?!\w)", re.I
    )

    def find(text: str) -> list[Word]:
        return [Word(match[0].casefold(), *match.span()) for match in phrase.finditer(text)]

    return NounFinder(f"the {len(listed)} words of {path}", find)


def _spacy() -> NounFinder | None:
    try:
        spacy: Any = import_module("spacy")
        util: Any = import_module("spacy.util")
    except ImportError:
        return None
    installed = sorted(name for name in util.get_installed_models() if name.startswith("en_"))
    if not installed:
        return None
    pipeline = spacy.load(installed[-1] if "en_core_web_sm" not in installed else "en_core_web_sm")
    return NounFinder(f"spaCy, {pipeline.meta.get('name', installed[-1])}", partial(_tagged_by_spacy, pipeline))


def _tagged_by_spacy(pipeline: Any, text: str) -> list[Word]:
    return [
        Word(token.text.casefold(), token.idx, token.idx + len(token.text))
        for token in pipeline(text)
        if token.pos_ in ("NOUN", "PROPN") and WORD.fullmatch(token.text)
    ]


def _nltk() -> NounFinder | None:
    try:
        nltk: Any = import_module("nltk")
        nltk.pos_tag(["probe"])
    except (ImportError, LookupError):  # LookupError: NLTK's data are not installed
        return None
    return NounFinder("NLTK's tagger", partial(_tagged_by_nltk, nltk.pos_tag))


def _tagged_by_nltk(tag: Callable[[list[str]], Iterable[tuple[str, str]]], text: str) -> list[Word]:
    listed = words(text)
    tags = tag([text[word.start : word.stop] for word in listed])
    return [word for word, (_, kind) in zip(listed, tags, strict=True) if kind.startswith("NN")]


def _content() -> NounFinder:
    return NounFinder(f"all words but {len(STOP_WORDS)} English stop words", content_words)


@dataclass(frozen=True)
class NounSource:
    """Where nouns are known from."""

    help: str
    load: Callable[[], NounFinder | None]
    """None where it is not installed."""
    needs: str = ""


AUTO: Final = "auto"
NOUN_FINDERS: Final = {
    "spacy": NounSource("spaCy's tagger", _spacy, "spaCy with an English pipeline"),
    "nltk": NounSource("NLTK's tagger", _nltk, "NLTK with its part-of-speech tagger's data"),
    "content": NounSource("all words that are not stop words", _content),
}
"""In the order in which `auto` tries them."""
