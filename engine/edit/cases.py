"""Tasks: what an edited model should say, or still say, as cases give them or a capture implies them.

Each is a reading that ends with the answer, and the positions whose predictions are scored.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from actstore.engine.edit.case_kinds import CASE_KINDS
from actstore.engine.edit.readings import Reading, open_image
from actstore.engine.edit.words import starts_of
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.engine.edit.readings import CaptureReader, Reader
    from actstore.engine.edit.requests.request import Case
    from actstore.engine.edit.words import Replacement

Part = Literal["answer", "question", "text"]

_TEXTS_AT_ONCE: Final = 64
"""Windows of text whose predictions are read at once."""


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
    part: Part = "answer"
    """What the positions predict: tokens of an answer, of a question, or of a text in which nothing is known to be either."""
    other: Reading | None = None
    """The same prompt with the answer that this one is compared with; None where there is none."""

    @property
    def is_locality(self) -> bool:
        """Whether nothing should change."""
        return CASE_KINDS[self.kind].is_locality


def tasks_of_cases(reader: Reader, cases: Sequence[Case], max_new_tokens: int = 50) -> list[Task]:
    """The tasks of cases; a locality without an answer gets what the model, as it is now, says.

    A case of fluency has no positions: what is generated after its prompt is scored. `InvalidInputError` for an answer of no
    tokens.
    """
    readings: list[Reading] = []
    others: list[Reading | None] = []
    for case in cases:
        image = None if case.image is None else open_image(case.image)
        reading = reader.read(case.prompt, case.answer or "", image)
        other = None if case.other is None else reader.read(case.prompt, case.other, image)
        for text, read in ((case.answer, reading), (case.other, other)):
            if text and read is not None and read.n_prompt >= len(read.ids):
                raise InvalidInputError(f"{case.where}: the answer {text!r} has no tokens after the prompt.")
        readings.append(reading)
        others.append(other)
    unanswered = [
        i for i, case in enumerate(cases) if case.answer is None and CASE_KINDS[case.kind].heading != "fluency"
    ]
    answers = reader.answers([readings[i] for i in unanswered], max_new_tokens) if unanswered else []
    for i, answer in zip(unanswered, answers, strict=True):
        readings[i] = _answered(readings[i], answer)
    tasks = [
        _task(case.where, case.kind, reading, edited=not CASE_KINDS[case.kind].is_locality)
        for case, reading in zip(cases, readings, strict=True)
    ]
    return [dataclasses.replace(task, other=other) for task, other in zip(tasks, others, strict=True)]


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
    answers_after: str | None = None,
) -> Iterator[Task]:
    """The tasks that a capture implies for a replacement of words.

    Of documents with answers: an answer with the old word should have the new one there and otherwise be the same, which is
    reliability for the documents `used` for the edit (None: all) and generality for others (`kind`, where given); an answer
    without it should stay. Of texts: wherever the model, as it is now, predicts the old word, it should predict the new one;
    everywhere else what it predicts now. Without a replacement, everything should stay.

    Of a text, what follows the last `answers_after` is its answer, and what comes before it a question (`Task.part`); without,
    nothing is known to be either. `InvalidInputError` where no text holds it.
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
    starts = [source.answer_start(text.reading.ids, answers_after) for text in texts]
    if texts and answers_after and not any(starts):
        raise InvalidInputError(
            f"No text of capture {source.capture.record.name!r} holds {answers_after!r}. Check `answers_after`."
        )
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        group = texts[start : start + _TEXTS_AT_ONCE]
        for number, task in _tasks_of_texts(source.reader, replacement, group, locality):
            yield from (
                _parts(task, starts[start + number]) if answers_after else [dataclasses.replace(task, part="text")]
            )


def _parts(task: Task, answer_start: int) -> Iterator[Task]:
    """The parts of a text's task: positions that predict tokens of its answer, and those inside the question."""
    is_answer = (task.positions >= answer_start - 1) if answer_start else np.zeros(len(task.positions), bool)
    parts: tuple[tuple[Part, NDArray[np.bool_]], ...] = (("answer", is_answer), ("question", ~is_answer))
    for part, selected in parts:
        if selected.any():
            yield dataclasses.replace(
                task, positions=task.positions[selected], targets=task.targets[selected],
                edited=task.edited[selected], part=part,
            )  # fmt: skip


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
) -> Iterator[tuple[int, Task]]:
    """(number of the text, one of its tasks)."""
    logits_of = reader.logits([text.reading for text in texts], [text.positions for text in texts])
    for number, (text, logits) in enumerate(zip(texts, logits_of, strict=True)):
        top = logits.argmax(1).numpy()
        ids = text.reading.ids
        predicts_old = top == replacement.old[0] if replacement is not None else np.zeros(len(top), bool)
        if predicts_old.any() and replacement is not None and replacement.is_single:
            positions = text.positions[predicts_old]
            targets = np.full(len(positions), replacement.new[0], np.int64)
            yield number, Task(text.name, text.kind, text.reading, positions, targets, np.ones(len(positions), bool))
        elif replacement is not None:
            # The tokens after the first are predicted from the new word's own, so each occurrence is a text of its own.
            for position in text.positions[predicts_old].tolist():
                if ids[position + 1 : position + 1 + len(replacement.old)].tolist() == list(replacement.old):
                    longer = np.concatenate([ids[: position + 1], replacement.new]).astype(np.int32)
                    yield (
                        number,
                        _task(f"{text.name}@{position}", text.kind, Reading(longer, position + 1), edited=True),
                    )
        if not predicts_old.all():
            other = ~predicts_old
            is_new = np.zeros(int(other.sum()), bool)
            yield number, Task(text.name, locality, text.reading, text.positions[other], top[other], is_new)
