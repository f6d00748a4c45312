"""The learned forms, FiNE and fine-tuning: neurons located at examples, and rows learned from them."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING

from actstore.engine.edit.forms.fine import learn, locate
from actstore.engine.edit.requests.examples import find_examples
from actstore.engine.edit.rows import group_by_layer, make_edit
from actstore.store.edits import RowPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.edit.readings import Reader
    from actstore.engine.edit.settings import RewriteSettings
    from actstore.store.edits import Edit
    from actstore.store.reader import Capture


def make(capture: Capture, name: str, settings: RewriteSettings, reader: Reader) -> Edit:
    """The edit by the fine form, or by fine-tuning; its settings have a `warning` where the target was not reached.

    `InvalidInputError` where there is nothing to learn from.
    """
    examples = find_examples(capture, settings, reader)
    neurons = group_by_layer(settings.neurons) or locate(reader, examples.tasks, settings.fine)
    fine = dataclasses.replace(settings.fine, plain=settings.form == "fine-tune")
    learned = learn(reader, examples.tasks, neurons, fine)
    rows: dict[int, tuple[Sequence[int], RowPair]] = {}
    for layer, indices in neurons.items():
        before = reader.model.write_vectors(layer)[indices].cpu()
        rows[layer] = indices, RowPair(before, before.float() + learned.deltas[layer])
    fields = examples.fields | asdict(fine) | {
        "steps_taken": learned.steps, "probability": learned.probability, "loss": learned.loss,
    }  # fmt: skip
    if not learned.reached:
        fields["warning"] = (
            f"The target was not reached: after {learned.steps} steps, a token of {examples.new!r} still has a "
            f"probability of {learned.probability:.3g} in one of the examples, where {fine.stop:g} was asked for. Raise "
            "`steps` or `rate`, or rewrite more neurons with `per_position`."
        )
    return make_edit(name, settings.form, capture.store.model, rows, settings=fields)
