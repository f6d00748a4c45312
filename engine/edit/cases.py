"""Cases: what an edited model should say, or still say, as a file of JSON lines gives them or a capture implies them.

Each becomes a `Task`: a reading that ends with the answer, and the positions whose predictions are scored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from actstore.engine.edit.case_kinds import CASE_KINDS
from actstore.engine.edit.readings import Reading, open_image
from actstore.engine.edit.words import starts_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.readings import CaptureReader, Reader
    from actstore.engine.edit.words import Replacement

_TEXTS_AT_ONCE: Final = 64
"""Windows of text whose predictions are read at once."""


@dataclass(frozen=True)
class Case:
    """A line of a file of cases."""

    prompt: str
    kind: str
    """A key of `CASE_KINDS`."""
    answer: str | None
    """What the edited model should say; of a locality, what it said before (None: whatever the model says now)."""
    image: Path | None
    where: str
    """File and line, for messages."""


@dataclass(frozen=True, eq=False)
class Task:
    """A reading, and what should be predicted in it."""

    name: str
    kind: str
    """A key of `CASE_KINDS`."""
    reading: Reading
    """It ends with the answer, so that all of it is predicted in one pass."""
    positions: NDArray[np.int64]
    """The positions that predict the targets."""
    targets: NDArray[np.int64]
    """The tokens that should be predicted; shape of `positions`."""
    edited: NDArray[np.bool_]
    """Which of them are the edit's new word; of a locality, none."""
    answer: tuple[int, ...] = ()
    """The whole answer, where one can be generated from the prompt."""

    @property
    def is_locality(self) -> bool:
        """Whether nothing should change."""
        return CASE_KINDS[self.kind].is_locality


def read_cases(path: str | Path) -> list[Case]:
    """The cases of a file of JSON lines: `prompt`, `kind`, `target` or `answer`, and optionally `image`, relative to the file.

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


def _case(value: object, where: str, folder: Path) -> Case:
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        raise InvalidInputError(f"{where} should be an object with a prompt, a kind and a target.")
    kind = value.get("kind")
    if kind not in CASE_KINDS:
        raise InvalidInputError(f"{where}: the kind of a case is one of {', '.join(CASE_KINDS)}, found {kind!r}.")
    answer = value.get("target", value.get("answer"))
    if not (answer is None and CASE_KINDS[kind].is_locality) and (not isinstance(answer, str) or not answer):
        raise InvalidInputError(f"{where}: expected the text of the target (or answer), found {answer!r}.")
    image = value.get("image")
    if image is not None and not isinstance(image, str):
        raise InvalidInputError(f"{where}: an image is a path, found {image!r}.")
    return Case(value["prompt"], kind, answer, None if image is None else folder / image, where)


def tasks_of_cases(reader: Reader, cases: Sequence[Case], max_new_tokens: int = 50) -> list[Task]:
    """The tasks of cases; a locality without an answer gets what the model, as it is now, says."""
    readings: list[Reading] = []
    for case in cases:
        image = None if case.image is None else open_image(case.image)
        readings.append(reader.read(case.prompt, case.answer or "", image))
    unanswered = [i for i, case in enumerate(cases) if case.answer is None]
    answers = reader.answers([readings[i] for i in unanswered], max_new_tokens) if unanswered else []
    for i, answer in zip(unanswered, answers, strict=True):
        readings[i] = _answered(readings[i], answer)
    return [
        _task(case.where, case.kind, reading, edited=not CASE_KINDS[case.kind].is_locality)
        for case, reading in zip(cases, readings, strict=True)
    ]


def _answered(prompt: Reading, answer: Sequence[int]) -> Reading:
    return Reading(np.concatenate([prompt.ids, np.asarray(answer, np.int32)]), prompt.n_prompt, prompt.extra)


def _task(name: str, kind: str, reading: Reading, edited: bool | NDArray[np.bool_]) -> Task:
    """A task whose targets are all tokens of the answer."""
    positions = np.arange(reading.n_prompt - 1, len(reading.ids) - 1)
    targets = reading.ids[reading.n_prompt :].astype(np.int64)
    is_edited = np.full(len(positions), edited) if isinstance(edited, bool) else edited
    return Task(name, kind, reading, positions, targets, is_edited, tuple(targets.tolist()))


def tasks_of_capture(
    source: CaptureReader,
    replacement: Replacement | None,
    used: Collection[int] | None,
    kind: str | None = None,
    max_windows: int | None = None,
) -> Iterator[Task]:
    """The tasks that a capture implies for a replacement of words.

    Of documents with answers: an answer with the old word should have the new one there and otherwise be the same, which is
    reliability for the documents `used` for the edit (None: all) and generality for others (`kind`, where given); an answer
    without it should stay. Of texts: wherever the model, as it is now, predicts the old word, it should predict the new one;
    everywhere else what it predicts now. Without a replacement, everything should stay.
    """
    medium = "image" if source.has_images else "text"
    locality = f"{medium}-locality"
    texts: list[_Text] = []
    for window, document, ids, positions in source.windows(max_windows):
        is_used = kind is None and (used is None or document in used)
        kind_here = "reliability" if is_used else kind or f"{medium}-generality"
        first = source.n_prompt(document)
        name = f"{source.source(document)}#{window}"
        if first is None:
            texts.append(_Text(name, kind_here, source.reading(document, ids), positions.astype(np.int64)))
            continue
        answer, is_new = _with_new_word(ids[first:], replacement)
        reading = source.reading(document, np.concatenate([ids[:first], answer]).astype(np.int32))
        yield _task(name, kind_here if is_new.any() else locality, reading, is_new)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield from _tasks_of_texts(source.reader, replacement, texts[start : start + _TEXTS_AT_ONCE], locality)


def _with_new_word(
    answer: NDArray[np.int32], replacement: Replacement | None
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The answer with the new word for the old, and which of its tokens that is."""
    ids: list[int] = []
    is_new: list[bool] = []
    end = 0
    for start in starts_of(answer, replacement.old).tolist() if replacement is not None else ():
        if start < end:  # overlaps the occurrence before
            continue
        assert replacement is not None
        ids += [*answer[end:start].tolist(), *replacement.new]
        is_new += [False] * (start - end) + [True] * len(replacement.new)
        end = start + len(replacement.old)
    ids += answer[end:].tolist()
    is_new += [False] * (len(answer) - end)
    return np.array(ids, np.int32), np.array(is_new, bool)


@dataclass(frozen=True, eq=False)
class _Text:
    """A window of text."""

    name: str
    kind: str
    reading: Reading
    positions: NDArray[np.int64]


def _tasks_of_texts(
    reader: Reader, replacement: Replacement | None, texts: Sequence[_Text], locality: str
) -> Iterator[Task]:
    logits_of = reader.logits([text.reading for text in texts], [text.positions for text in texts])
    for text, logits in zip(texts, logits_of, strict=True):
        top = logits.argmax(1).numpy()
        ids = text.reading.ids
        predicts_old = top == replacement.old[0] if replacement is not None else np.zeros(len(top), bool)
        if predicts_old.any() and replacement is not None and replacement.is_single:
            positions = text.positions[predicts_old]
            targets = np.full(len(positions), replacement.new[0], np.int64)
            yield Task(text.name, text.kind, text.reading, positions, targets, np.ones(len(positions), bool))
        elif replacement is not None:
            # The tokens after the first are predicted from the new word's own, so each occurrence is a text of its own.
            for position in text.positions[predicts_old].tolist():
                if ids[position + 1 : position + 1 + len(replacement.old)].tolist() == list(replacement.old):
                    longer = np.concatenate([ids[: position + 1], replacement.new]).astype(np.int32)
                    yield _task(f"{text.name}@{position}", text.kind, Reading(longer, position + 1), edited=True)
        if not predicts_old.all():
            other = ~predicts_old
            is_new = np.zeros(int(other.sum()), bool)
            yield Task(text.name, locality, text.reading, text.positions[other], top[other], is_new)
