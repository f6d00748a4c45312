"""Edits of weights put together: rows of write vectors before and after, with the record that says what they are.

From rows alone: no model is needed. Knows nothing about how rows are found, or how an edit is applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from actstore.store.edits import Edit, EditedRows, EditRecord, RowPair, row_digest
from actstore.store.errors import InvalidInputError
from actstore.store.model import root
from actstore.store.neurons import neuron_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from actstore.engine.edit.settings import RewriteSettings
    from actstore.engine.edit.words import Exchange
    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import ModelRecord


def make_edit(
    name: str, form: str, model: ModelRecord, rows: Mapping[int, tuple[Sequence[int], RowPair]], **fields: Any
) -> Edit:
    """An edit of weights from layer → (neurons ascending, rows); `fields` are further ones of the record.

    Rows after are brought to the dtype of those before. `InvalidInputError` where any becomes NaN or infinite, and where
    nothing changes.
    """
    pairs: dict[int, RowPair] = {}
    records = []
    for layer, (neurons, (before, after)) in sorted(rows.items()):
        held = after.detach().to(before.dtype)
        if not bool(held.isfinite().all()):
            worst = neurons[int((~held.isfinite()).any(1).nonzero()[0])]
            raise InvalidInputError(
                f"The edit would make the write vector of {neuron_name(layer, worst)} infinite or NaN in "
                f"{str(before.dtype)[6:]}. Ask for a smaller change, or for more neurons."
            )
        pairs[layer] = RowPair(before.detach().cpu().contiguous(), held.cpu().contiguous())
        module = model.layers[layer].module
        digests = (row_digest(pairs[layer].before), row_digest(pairs[layer].after))
        records.append(EditedRows(layer, module, tuple(int(n) for n in neurons), *digests))
    if all(rows.before == rows.after for rows in records):
        raise InvalidInputError(
            "The edit changes no bit of any write vector: choose other neurons, or a larger change."
        )
    record = EditRecord(
        name=name, kind="weights", form=form, written_by=root.written_by(), created=root.now(), model=model.name,
        model_fingerprint=model.fingerprint, dtype=model.dtype, rows=tuple(records), **{"settings": {}, **fields},
    )  # fmt: skip
    return Edit(record, pairs)


def scaled_rows(
    neurons: Mapping[int, Sequence[int]], before: Mapping[int, Tensor], factor: float
) -> dict[int, tuple[Sequence[int], RowPair]]:
    """The rows of an edit that multiplies write vectors by `factor`: what multiplying the activations amounts to.

    `before`: layer → the neurons' write vectors [neuron, d_model].
    """
    return {
        layer: (
            chosen,
            RowPair(before[layer], torch.zeros_like(before[layer]) if factor == 0 else before[layer] * factor),
        )
        for layer, chosen in neurons.items()
    }


def fields_of(capture: Capture, exchange: Exchange, settings: RewriteSettings) -> dict[str, Any]:
    """What the record of every rewrite says of it."""
    return {
        "capture": capture.record.name, "from": exchange.old_text, "to": exchange.new_text,
        "max_documents": settings.least_norm.max_documents, "seed": settings.seed,
    }  # fmt: skip


def grouped(neurons: Sequence[tuple[int, int]] | None) -> dict[int, list[int]] | None:
    """(layer, index) pairs as layer → indices, ascending."""
    if neurons is None:
        return None
    found: dict[int, list[int]] = {}
    for layer, neuron in sorted(set(neurons)):
        found.setdefault(layer, []).append(neuron)
    return found
