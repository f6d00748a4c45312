"""Edits that multiply what neurons write: their write vectors for good, or their activations while the model runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actstore.engine.edit.rows import make_edit, scaled_rows
from actstore.engine.edit.specification import Specification, check_neurons
from actstore.store.edits import Edit, EditRecord
from actstore.store.errors import InvalidInputError
from actstore.store.model import root
from actstore.store.model.weights import read_rows

if TYPE_CHECKING:
    from actstore.engine.edit.specification import Operation
    from actstore.store.model.root import Root


def scaled_edit(store: Root, name: str, operation: Operation, kind: str) -> Edit:
    """An edit of kind `weights` or `intervention` that multiplies neurons by the operation's factor.

    `InvalidInputError` for neurons that the model does not have, for rows of routed experts, and for weights that should
    differ between positions.
    """
    widths = {layer.layer: layer.neurons for layer in store.model.layers}
    neurons = operation.by_layer()
    check_neurons(neurons, widths, store.model.name)
    if kind == "intervention":
        return intervention(store, name, operation.kind, (operation,))
    if kind != "weights":
        raise InvalidInputError(f"`kind` is weights or intervention, found {kind!r}.")
    if operation.positions != "all":
        raise InvalidInputError(
            f'Weights are the same at every position: `positions={operation.positions!r}` needs `kind="intervention"`.'
        )
    experts = [layer for layer in neurons if store.model.layers[layer].expert is not None]
    if experts:
        raise InvalidInputError(
            f"Layer {experts[0]} is a routed expert, whose rows cannot be edited as weights. Choose other neurons."
        )
    before = {layer: read_rows(store.folder, f"layer-{layer}", "write_vectors", of) for layer, of in neurons.items()}
    rows = scaled_rows(neurons, before, operation.factor)
    return make_edit(name, operation.kind, store.model, rows, settings={"factor": operation.factor})


def intervention(store: Root, name: str, form: str, operations: tuple[Operation, ...]) -> Edit:
    """An edit that changes activations while the model runs."""
    model = store.model
    specification = json.loads(json.dumps(Specification(operations).to_json()))
    record = EditRecord(
        name=name, kind="intervention", form=form, written_by=root.written_by(), created=root.now(), model=model.name,
        model_fingerprint=model.fingerprint, dtype=model.dtype, settings={}, specification=specification,
    )  # fmt: skip
    return Edit(record, {})
