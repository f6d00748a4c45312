"""Examples that a rewrite is made from: the prompts of its requests, or the documents in which the model says the old word."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.edit.cases import tasks_of_capture, tasks_of_cases
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.rows import fields_of, fields_of_requests
from actstore.engine.edit.words import find_replacement
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.requests.request import Case
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Replacement
    from actstore.store.reader import Capture


@dataclass(frozen=True, eq=False)
class Examples:
    """What a rewrite is made from."""

    tasks: tuple[Task, ...]
    """One per prompt: it ends with the target, whose tokens are its positions' targets."""
    fact: tuple[int, ...]
    """Which request a task belongs to; 0 for all tasks of a rewrite of words."""
    new: str
    """The target, or one of them, for messages."""
    fields: dict[str, Any]
    """What the record of the edit says of them."""


def find_examples(
    capture: Capture, settings: RewriteSettings, reader: Reader, replacement: Replacement | None = None
) -> Examples:
    """The examples of a rewrite; those of words are drawn from the capture.

    `InvalidInputError` where there are none. `replacement`: the two words, where they are known already.
    """
    if settings.requests:
        return _examples_of_requests(capture, settings, reader)
    replacement = replacement or find_replacement(capture, *settings.words)
    tasks, documents = examples_of_words(capture, replacement, settings, reader)
    fields = fields_of(capture, replacement, settings) | {"documents": documents, "examples": len(tasks)}
    return Examples(tuple(tasks), (0,) * len(tasks), replacement.new_text, fields)


def _examples_of_requests(capture: Capture, settings: RewriteSettings, reader: Reader) -> Examples:
    cases: list[Case] = []
    fact: list[int] = []
    for number, request in enumerate(settings.requests):
        own = request.cases()[: len(request.prompts)]
        cases += own
        fact += [number] * len(own)
    fields = fields_of_requests(capture, settings) | {"examples": len(cases)}
    return Examples(tuple(tasks_of_cases(reader, cases)), tuple(fact), settings.requests[0].target, fields)


def examples_of_words(
    capture: Capture, replacement: Replacement, settings: RewriteSettings, reader: Reader
) -> tuple[list[Task], list[int]]:
    """The examples to learn from, and their documents: drawn from those in which the model says the old word.

    `InvalidInputError` where there are none.
    """
    source = CaptureReader(reader, capture)
    bound = settings.least_norm.max_documents
    candidates: list[tuple[int, Task]] = []
    document_of = {f"{source.source(document)}#{window}": document for window, document, _, _ in source.windows()}
    for task in tasks_of_capture(source, replacement, None):
        document = document_of[task.name.partition("@")[0]]
        if task.kind == "reliability" and (bound is None or document < bound):
            candidates.append((document, _first_word_only(task)))
    if not candidates:
        raise InvalidInputError(
            f"{reader.model.spec.name} says {replacement.old_text!r} in no document of capture {capture.record.name!r}: there "
            "is nothing to learn from. Check `old`."
        )
    order = np.random.default_rng(settings.seed).permutation(len(candidates))[: settings.examples]
    examples = [candidates[i] for i in sorted(order.tolist())]
    return [task for _, task in examples], sorted({document for document, _ in examples})


def _first_word_only(task: Task) -> Task:
    """The task up to its first edited word: one target, and the text before it as its prompt."""
    first = int(np.flatnonzero(task.edited)[0])
    n = 1
    while (
        first + n < len(task.edited)
        and task.edited[first + n]
        and task.positions[first + n] == task.positions[first] + n
    ):
        n += 1
    word = slice(first, first + n)
    end = int(task.positions[first]) + 1
    ids = np.concatenate([task.reading.ids[:end], task.targets[word]]).astype(np.int32)
    reading = dataclasses.replace(task.reading.cut(len(ids)), ids=ids)
    return dataclasses.replace(task, reading=reading, positions=task.positions[word], targets=task.targets[word],
                               edited=task.edited[word])  # fmt: skip
