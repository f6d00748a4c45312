"""Rewrites that are learned: examples drawn from a capture, neurons located at them, rows learned from them.

Needs the model. Knows nothing about other forms.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from actstore.engine.edit.cases import tasks_of_capture
from actstore.engine.edit.forms.fine import learn, locate
from actstore.engine.edit.readings import CaptureReader
from actstore.engine.edit.rows import fields_of, grouped, make_edit
from actstore.store.edits import RowPair
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.edit.cases import Task
    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Exchange
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


def learned(capture: Capture, exchange: Exchange, name: str, settings: RewriteSettings, reader: Reader) -> Edit:
    """The edit by the fine form, or by plain fine-tuning; its settings have a `warning` where learning did not get there.

    `InvalidInputError` where nothing can be learned from.
    """
    examples, documents = find_examples(capture, exchange, settings, reader)
    neurons = grouped(settings.neurons) or locate(reader, examples, settings.fine)
    fine = dataclasses.replace(settings.fine, plain=settings.form == "fine-tune")
    found = learn(reader, examples, neurons, fine)
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, chosen in neurons.items():
        before = reader.model.write_vectors(layer)[chosen].cpu()
        rows[layer] = chosen, RowPair(before, before.float() + found.deltas[layer])
    fields = fields_of(capture, exchange, settings) | asdict(fine) | {
        "documents": documents, "examples": len(examples), "steps_taken": found.steps, "probability": found.probability,
        "loss": found.loss,
    }  # fmt: skip
    if not found.reached:
        fields["warning"] = (
            f"The target was not reached: after {found.steps} steps a token of {exchange.new_text!r} still has a "
            f"probability of {found.probability:.3g} in one of the examples, where {fine.stop:g} was asked for. Raise "
            "--steps or --rate, or rewrite more neurons with --per-position."
        )
    return make_edit(name, settings.form, capture.store.model, rows, settings=fields)


def find_examples(
    capture: Capture, exchange: Exchange, settings: RewriteSettings, reader: Reader
) -> tuple[list[Task], list[int]]:
    """The examples to learn from, and their documents: drawn from those in which the model says the old word.

    `InvalidInputError` where there are none.
    """
    source = CaptureReader(reader, capture)
    bound = settings.least_norm.max_documents
    places: list[tuple[int, Task]] = []
    documents = [document for _, document, _, _ in source.windows()]
    numbers = {f"{source.source(d)}#{w}": d for w, d, _, _ in source.windows()} if documents else {}
    for task in tasks_of_capture(source, exchange, None):
        document = numbers[task.name.partition("@")[0]]
        if task.kind == "reliability" and (bound is None or document < bound):
            places.append((document, _alone(task)))
    if not places:
        raise InvalidInputError(
            f"{reader.model.spec.name} says {exchange.old_text!r} in no document of capture {capture.record.name!r}: there is "
            "nothing to learn from. Mend --from."
        )
    order = np.random.default_rng(settings.seed).permutation(len(places))[: settings.examples]
    chosen = [places[i] for i in sorted(order.tolist())]
    return [task for _, task in chosen], sorted({document for document, _ in chosen})


def _alone(task: Task) -> Task:
    """The task up to its first edited word: one target, and the text before it as its prompt."""
    first = int(np.flatnonzero(task.edited)[0])
    n = 1
    while (
        first + n < len(task.edited)
        and task.edited[first + n]
        and task.positions[first + n] == task.positions[first] + n
    ):
        n += 1
    here = slice(first, first + n)
    end = int(task.positions[first]) + 1
    ids = np.concatenate([task.reading.ids[:end], task.wanted[here]]).astype(np.int32)
    reading = dataclasses.replace(task.reading.cut(len(ids)), ids=ids)
    return dataclasses.replace(task, reading=reading, positions=task.positions[here], wanted=task.wanted[here],
                               edited=task.edited[here])  # fmt: skip
