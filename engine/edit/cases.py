"""Cases: what an edited model should say, or go on saying, as a file of JSON lines gives them or a capture implies them.

Each becomes a `Task`: a reading with the answer given, and the positions whose predictions are looked at. Knows nothing about
edits or how answers are judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.engine.edit.readings import Reading, open_image
from actstore.engine.edit.words import starts_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.readings import CaptureReader, Reader
    from actstore.engine.edit.words import Exchange

KINDS: Final = ("reliability", "text-generality", "image-generality", "text-locality", "image-locality")
_TOGETHER = 64
"""Windows of text whose predictions are looked at together."""


@dataclass(frozen=True)
class Case:
    """A line of a file of cases."""

    prompt: str
    kind: str
    answer: str | None
    """Wanted after the edit; of locality, what was said before (None: whatever the model says)."""
    image: Path | None
    where: str


@dataclass(frozen=True, eq=False)
class Task:
    """A reading, and what it shows."""

    name: str
    kind: str
    reading: Reading
    """With the wanted answer as its end, so that all of it is predicted in one pass."""
    positions: NDArray[np.int64]
    """Those that predict the tokens looked at."""
    wanted: NDArray[np.int64]
    """These tokens; shape of `positions`."""
    edited: NDArray[np.bool_]
    """Which of them are the word that the edit puts in place; of a locality, none."""
    answer: tuple[int, ...] = ()
    """The whole answer, where one can be generated from the prompt."""

    @property
    def is_locality(self) -> bool:
        """Whether nothing should change."""
        return self.kind.endswith("locality")


def read_cases(path: str | Path) -> list[Case]:
    """The cases of a file of JSON lines: `prompt`, `kind`, `target` or `answer`, and perhaps `image`, beside the file.

    `InvalidInputError` naming the line for anything else.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"The cases {path} cannot be read: {error}.") from None
    cases = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"{where} should be a JSON object: {error}.") from None
        cases.append(_case(value, where, path.parent))
    if not cases:
        raise InvalidInputError(f"The cases {path} hold no line.")
    return cases


def _case(value: Any, where: str, folder: Path) -> Case:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise InvalidInputError(f"{where} should be an object with a prompt, a kind and a target.")
    kind = value.get("kind")
    if kind not in KINDS:
        raise InvalidInputError(f"{where}: the kind of a case is one of {', '.join(KINDS)}, found {kind!r}.")
    answer = value.get("target", value.get("answer"))
    if not (answer is None and kind.endswith("locality")) and (not isinstance(answer, str) or not answer):
        raise InvalidInputError(f"{where}: expected the text of the target (or answer), found {answer!r}.")
    image = value.get("image")
    if image is not None and not isinstance(image, str):
        raise InvalidInputError(f"{where}: an image is a path, found {image!r}.")
    return Case(value["prompt"], kind, answer, None if image is None else folder / image, where)


def tasks_of_cases(reader: Reader, cases: Sequence[Case], max_new_tokens: int = 50) -> list[Task]:
    """The tasks of cases; the answers that a locality lacks are what the model, as it is now, says."""
    readings: dict[int, Reading] = {}
    open_: list[int] = []
    for place, case in enumerate(cases):
        image = None
        if case.image is not None:
            from PIL import Image, ImageOps

            image = open_image(case.image, Image, ImageOps)
        readings[place] = reader.read(case.prompt, case.answer or "", image)
        if case.answer is None:
            open_.append(place)
    answers = reader.answers([readings[place] for place in open_], max_new_tokens) if open_ else []
    for place, answer in zip(open_, answers, strict=True):
        readings[place] = _answered(readings[place], answer)
    return [
        _task(case.where, case.kind, readings[place], edited=not case.kind.endswith("locality"))
        for place, case in enumerate(cases)
    ]


def _answered(prompt: Reading, answer: Sequence[int]) -> Reading:
    return Reading(np.concatenate([prompt.ids, np.asarray(answer, np.int32)]), prompt.n_prompt, prompt.extra)


def _task(name: str, kind: str, reading: Reading, edited: bool | NDArray[np.bool_]) -> Task:
    """A task that looks at every token of the answer."""
    positions = np.arange(reading.n_prompt - 1, len(reading.ids) - 1)
    wanted = reading.ids[reading.n_prompt :].astype(np.int64)
    mask = np.full(len(positions), edited) if isinstance(edited, bool) else edited
    return Task(name, kind, reading, positions, wanted, mask, tuple(wanted.tolist()))


def tasks_of_capture(
    source: CaptureReader,
    exchange: Exchange | None,
    used: Collection[int] | None,
    kind: str | None = None,
    max_windows: int | None = None,
) -> Iterator[Task]:
    """The tasks that a capture implies for an exchange of words.

    Where its documents have answers: an answer with the old word shall have the new one there and else be the same, which is
    reliability for the documents `used` for the edit (None: all), generality for others (`kind`, where given); an answer
    without it shall stay. Where it is text: wherever the model, as it is now, predicts the old word, the new one; everywhere
    else what it predicts. Without an exchange, everything shall stay.
    """
    sees = source.has_images
    local = "image-locality" if sees else "text-locality"
    general = kind or ("image-generality" if sees else "text-generality")
    texts: list[_Text] = []
    for window, document, ids, kept in source.windows(max_windows):
        mine = "reliability" if kind is None and (used is None or document in used) else general
        first = source.n_prompt(document)
        name = f"{source.source(document)}#{window}"
        if first is None:
            texts.append(_Text(name, mine, source.reading(document, ids), kept.astype(np.int64)))
            continue
        answer, at = _exchanged(ids[first:], exchange)
        reading = source.reading(document, np.concatenate([ids[:first], answer]).astype(np.int32))
        yield _task(name, mine if at.any() else local, reading, at)
    for start in range(0, len(texts), _TOGETHER):
        yield from _of_texts(source.reader, exchange, texts[start : start + _TOGETHER], local)


def _exchanged(answer: NDArray[np.int32], exchange: Exchange | None) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The answer with the new word for the old, and which of its tokens that is."""
    parts: list[Sequence[int]] = []
    masks: list[Sequence[bool]] = []
    done = 0
    for start in starts_of(answer, exchange.old).tolist() if exchange is not None else ():
        if start < done:
            continue
        assert exchange is not None
        parts += [answer[done:start].tolist(), exchange.new]
        masks += [[False] * (start - done), [True] * len(exchange.new)]
        done = start + len(exchange.old)
    parts.append(answer[done:].tolist())
    masks.append([False] * (len(answer) - done))
    return np.array([t for part in parts for t in part], np.int32), np.array([m for part in masks for m in part], bool)


@dataclass(frozen=True, eq=False)
class _Text:
    """A window of text."""

    name: str
    kind: str
    reading: Reading
    positions: NDArray[np.int64]


def _of_texts(reader: Reader, exchange: Exchange | None, texts: Sequence[_Text], local: str) -> Iterator[Task]:
    every = reader.logits([text.reading for text in texts], [text.positions for text in texts])
    for text, logits in zip(texts, every, strict=True):
        top = logits.argmax(1).numpy()
        ids = text.reading.ids
        hit = top == exchange.old[0] if exchange is not None else np.zeros(len(top), bool)
        if hit.any() and exchange is not None and exchange.is_single:
            at = text.positions[hit]
            wanted = np.full(len(at), exchange.new[0], np.int64)
            yield Task(text.name, text.kind, text.reading, at, wanted, np.ones(len(at), bool))
        elif exchange is not None:
            for position in text.positions[hit].tolist():
                if ids[position + 1 : position + 1 + len(exchange.old)].tolist() == list(exchange.old):
                    longer = np.concatenate([ids[: position + 1], exchange.new]).astype(np.int32)
                    yield _task(f"{text.name}@{position}", text.kind, Reading(longer, position + 1), edited=True)
        if not hit.all():
            none = np.zeros(int((~hit).sum()), bool)
            yield Task(text.name, local, text.reading, text.positions[~hit], top[~hit], none)
