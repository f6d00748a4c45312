"""The learned forms, FiNE and fine-tuning: examples drawn from a capture, neurons located at them, rows learned from them."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.edit.cases import tasks_of_capture
from actstore.engine.edit.forms.fine import learn, locate
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.rows import fields_of, group_by_layer, make_edit
from actstore.engine.edit.words import find_replacement
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Replacement
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


def make(capture: Capture, name: str, settings: RewriteSettings, reader: Reader) -> Edit:
    """The edit by the fine form, or by fine-tuning; its settings have a `warning` where the target was not reached.

    `InvalidInputError` where there is nothing to learn from.
    """
    replacement = find_replacement(capture, settings.old, settings.new)
    examples, documents = find_examples(capture, replacement, settings, reader)
    neurons = group_by_layer(settings.neurons) or locate(reader, examples, settings.fine)
    fine = dataclasses.replace(settings.fine, plain=settings.form == "fine-tune")
    learned = learn(reader, examples, neurons, fine)
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, indices in neurons.items():
        before = reader.model.write_vectors(layer)[indices].cpu()
        rows[layer] = indices, RowPair(before, before.float() + learned.deltas[layer])
    fields = fields_of(capture, replacement, settings) | asdict(fine) | {
        "documents": documents, "examples": len(examples), "steps_taken": learned.steps, "probability": learned.probability,
        "loss": learned.loss,
    }  # fmt: skip
    if not learned.reached:
        fields["warning"] = (
            f"The target was not reached: after {learned.steps} steps, a token of {replacement.new_text!r} still has a "
            f"probability of {learned.probability:.3g} in one of the examples, where {fine.stop:g} was asked for. Raise "
            "`steps` or `rate`, or rewrite more neurons with `per_position`."
        )
    return make_edit(name, settings.form, capture.store.model, rows, settings=fields)


def find_examples(
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
