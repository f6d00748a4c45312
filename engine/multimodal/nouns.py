"""The nouns of a text: by a tagger where one is installed, from a word list, or else all words that are not stop words.

Knows nothing about tokens or captures.
"""

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
"""English words that name nothing. Two and its kin are here, `circles` and `red` are not: a colour is a concept, too."""

KINDS: Final = ("auto", "spacy", "nltk", "content")


class Word(NamedTuple):
    """A word of a text, as found in `text[start:stop]`."""

    word: str
    """In small letters."""
    start: int
    stop: int


@dataclass(frozen=True)
class NounFinder:
    """A way to find nouns, with the words by which it is told to people."""

    name: str
    find: Callable[[str], list[Word]]
    """All nouns of a text, in their order, repeated where they are."""

    def first_of_each(self, text: str) -> list[Word]:
        """Each noun of the text where it comes first, in the order of the text."""
        seen: dict[str, Word] = {}
        for word in self.find(text):
            seen.setdefault(word.word, word)
        return list(seen.values())


def noun_finder(how: str = "auto") -> NounFinder:
    """The way named by `how`: auto, spacy, nltk, content, or the path of a file with a noun a line.

    auto is spaCy with an installed English pipeline, else NLTK with its tagger's data, else content: all words but
    `STOP_WORDS`. Raises `InvalidInputError` for a tagger that is not installed and a list that cannot be read or is empty.
    """
    if how == "content":
        return NounFinder(f"all words but {len(STOP_WORDS)} English stop words", content_words)
    if how in ("auto", "spacy") and (found := _spacy()) is not None:
        return found
    if how in ("auto", "nltk") and (found := _nltk()) is not None:
        return found
    if how == "auto":
        return noun_finder("content")
    if how in KINDS:
        needs = {"spacy": "spaCy with an English pipeline", "nltk": "NLTK with its part-of-speech tagger's data"}[how]
        raise InvalidInputError(
            f"Nouns by {how} need {needs}, which is not installed here. Install it, or take --nouns content."
        )
    return _from_file(Path(how))


def content_words(text: str) -> list[Word]:
    """All words of a text that are not stop words."""
    return [word for word in words(text) if word.word.replace("’", "'") not in STOP_WORDS]


def words(text: str) -> list[Word]:
    """All words of a text."""
    return [Word(found[0].casefold(), *found.span()) for found in WORD.finditer(text)]


def _from_file(path: Path) -> NounFinder:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(
            f"Nouns are found by {', '.join(KINDS)}, or read from a file with a noun a line; {str(path)!r} is neither "
            f"({reason}). Mend --nouns."
        ) from None
    listed = frozenset(word for line in lines if (word := line.split("#")[0].strip().casefold()))
    if not listed:
        raise InvalidInputError(f"{path} lists no noun. Write one a line, or take --nouns content.")
    phrase = re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(listed, key=len, reverse=True))) + r")(?!\w)", re.I
    )

    def find(text: str) -> list[Word]:
        return [Word(found[0].casefold(), *found.span()) for found in phrase.finditer(text)]

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
    except (ImportError, LookupError):  # NLTK says so of data that are not there
        return None
    return NounFinder("NLTK's tagger", partial(_tagged_by_nltk, nltk.pos_tag))


def _tagged_by_nltk(tag: Callable[[list[str]], Iterable[tuple[str, str]]], text: str) -> list[Word]:
    found = words(text)
    tags = tag([text[word.start : word.stop] for word in found])
    return [word for word, (_, kind) in zip(found, tags, strict=True) if kind.startswith("NN")]
