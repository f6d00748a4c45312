"""The words that are sent to a language model, and what is read from its answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from actstore.engine.explain.excerpts import Excerpt, ExcerptReader, Sample

    Messages = tuple[dict[str, Any], ...]

WORDING: Final = 1
"""Version of everything below that is sent; explanations of one name have the same."""
MAX_EXPLANATION: Final = 2000
"""Characters. Who answers at more length has not answered."""
MAX_READ: Final = 20_000
"""Characters at an answer's end in which what was asked for must be."""
MARKS: Final = (("<<", ">>"), ("«", "»"), ("[[", "]]"), ("{{", "}}"), ("⟦", "⟧"))
"""Brackets around marked tokens; those that no excerpt of a prompt contains are taken."""
PLACEHOLDER: Final = "(the explanation)"
"""What stands in prompts that are shown before there is one."""

_EXPLAIN: Final = """\
You study single neurons of a language model. You are shown excerpts of texts in which one neuron is active. Tokens \
that make it active stand between {open} and {close}; neighbouring ones share a pair. Below each excerpt is how active \
they make it, from 1 to 10. Excerpts may begin or end within a word, and ↵ stands for a line break.

Say in one short sentence what makes the neuron active: which tokens, in which contexts, with which meaning. Be as \
specific as the excerpts allow, and leave out what holds for any text. Do not mention the marks, the numbers or the \
excerpts.

End your answer with one line that begins with "Explanation:"."""

_DETECT: Final = """\
A neuron of a language model is described by one sentence. You are shown excerpts of texts, numbered from 1 to {n}. \
For each, decide whether the neuron is active somewhere in it, as far as the description tells. Any number of them may \
be. Excerpts may begin or end within a word, and ↵ stands for a line break.

End your answer with a JSON list of one number per excerpt, {n} in all, in their order: 1 where the neuron is active, \
0 where it is not, such as {example}."""

_FUZZ: Final = """\
A neuron of a language model is described by one sentence. You are shown excerpts of texts, numbered from 1 to {n}, in \
which some tokens stand between {open} and {close}. For each, decide whether the marked tokens are those that make the \
neuron active, as far as the description tells. Any number of them may be right. Excerpts may begin or end within a \
word, and ↵ stands for a line break.

End your answer with a JSON list of one number per excerpt, {n} in all, in their order: 1 where the marked tokens are \
the right ones, 0 where they are not, such as {example}."""

_SIGNS: Final = {code: " " for code in range(32)} | {0x0A: "↵", 0x7F: " ", 0x85: "↵", 0x2028: "↵", 0x2029: "↵"}


def explain_prompt(reader: ExcerptReader, sample: Sample) -> Messages:
    """The messages that ask for an explanation."""
    marks = choose_marks(reader, sample.train)
    lines = []
    for number, excerpt in enumerate(sample.train, 1):
        fires = sample.activity.fires[excerpt.start : excerpt.stop]
        places = np.flatnonzero(fires).tolist()
        pieces = _pieces(reader, excerpt)
        strengths = [_strength(sample, excerpt.start + place) for place in places]
        shown = ", ".join(
            f"{json.dumps(_line(pieces[place]), ensure_ascii=False)} {strength}"
            for place, strength in zip(places, strengths, strict=True)
        )
        lines += [f"Excerpt {number}: {_marked(pieces, set(places), marks)}", f"Active: {shown}", ""]
    system = _EXPLAIN.format(open=marks[0], close=marks[1])
    return _messages(system, "\n".join(lines).rstrip())


def detect_prompt(reader: ExcerptReader, explanation: str, excerpts: Sequence[Excerpt]) -> Messages:
    """The messages that ask in which excerpts a neuron fires."""
    texts = [_line(b"".join(_pieces(reader, excerpt))) for excerpt in excerpts]
    system = _DETECT.format(n=len(texts), example=_example(len(texts)))
    return _messages(system, _numbered(explanation, texts))


def fuzz_prompt(
    reader: ExcerptReader, explanation: str, excerpts: Sequence[tuple[Excerpt, Collection[int]]]
) -> Messages:
    """The messages that ask in which excerpts the right tokens are marked: those given with each, numbered as `start` is."""
    marks = choose_marks(reader, [excerpt for excerpt, _ in excerpts])
    texts = [
        _marked(_pieces(reader, excerpt), {token - excerpt.start for token in tokens}, marks)
        for excerpt, tokens in excerpts
    ]
    system = _FUZZ.format(n=len(texts), example=_example(len(texts)), open=marks[0], close=marks[1])
    return _messages(system, _numbered(explanation, texts))


def parse_explanation(answer: str) -> str | None:
    """The sentence that an answer ends with, in one line; None where there is none, or one that is too long."""
    found = re.findall(r"^[\s*_#>-]*explanation[\s*_]*:[\s*_]*(.*)$", answer[-MAX_READ:], re.MULTILINE | re.IGNORECASE)
    text = " ".join(found[-1].split()).removesuffix("**").strip() if found else ""
    return text if 0 < len(text) <= MAX_EXPLANATION else None


def parse_answers(answer: str, n: int) -> list[bool] | None:
    """The n answers of the last list in a text; None where there is no list of n zeros and ones.

    Nothing is guessed: of a list with more or fewer items nobody knows which excerpts they are of.
    """
    lists = re.findall(r"\[[^\[\]]*\]", answer[-MAX_READ:])
    if not lists:
        return None
    try:
        values = json.loads(lists[-1])
    except ValueError:
        return None
    if len(values) != n or any(type(value) not in (int, bool) or value not in (0, 1) for value in values):
        return None
    return [bool(value) for value in values]


def choose_marks(reader: ExcerptReader, excerpts: Sequence[Excerpt]) -> tuple[str, str]:
    """The first of `MARKS` that occur in none of the excerpts; the last where all do."""
    text = "".join(_line(b"".join(_pieces(reader, excerpt))) for excerpt in excerpts)
    return next((marks for marks in MARKS if not any(mark in text for mark in marks)), MARKS[-1])


def _pieces(reader: ExcerptReader, excerpt: Excerpt) -> list[bytes]:
    """The bytes of an excerpt's tokens; none for those that are no text."""
    ids = reader.ids[excerpt.start : excerpt.stop].tolist()
    text = reader.windows.text[excerpt.start : excerpt.stop].tolist()
    return [reader.capture.store.token_bytes(token) if shown else b"" for token, shown in zip(ids, text, strict=True)]


def _marked(pieces: Sequence[bytes], places: Collection[int], marks: tuple[str, str]) -> str:
    """A text in one line, with the tokens at some places between marks; neighbours share them."""
    parts: list[str] = []
    start = 0
    while start < len(pieces):
        stop = start
        while stop < len(pieces) and (stop in places) == (start in places):
            stop += 1
        text = _line(b"".join(pieces[start:stop]))
        parts.append(f"{marks[0]}{text}{marks[1]}" if start in places else text)
        start = stop
    return "".join(parts)


def _line(data: bytes) -> str:
    """A text in one line, so that none can look like the next line of a prompt."""
    return data.decode(errors="replace").replace("\r\n", "\n").translate(_SIGNS)


def _strength(sample: Sample, token: int) -> int:
    """How strongly a token fires: 10 at the neuron's maximum, 1 or more."""
    return min(10, max(1, round(10 * float(sample.activity.shares[token]))))


def _example(n: int) -> str:
    return json.dumps([(i + 1) % 2 for i in range(n)])


def _numbered(explanation: str, texts: Sequence[str]) -> str:
    lines = [f"Excerpt {number}: {text}" for number, text in enumerate(texts, 1)]
    return "\n".join([f"Description: {explanation}", "", *lines])


def _messages(system: str, user: str) -> Messages:
    return {"role": "system", "content": system}, {"role": "user", "content": user}
