"""Edits of weights, made from rows of write vectors before and after: with the record that says what they are.

No model is needed.
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
    from actstore.engine.edit.words import Replacement
    from actstore.store.capture.reader import Capture
    from actstore.store.files.records import ModelRecord


def make_edit(
    name: str,
    form: str,
    model: ModelRecord,
    rows: Mapping[int, tuple[Sequence[int], RowPair]],
    settings: dict[str, Any] | None = None,
    predicted: dict[str, Any] | None = None,
) -> Edit:
    """An edit of weights from layer → (neurons ascending, rows); `settings` and `predicted` are what the record says of it.

    The rows after are converted to the dtype of those before. `InvalidInputError` where any becomes NaN or infinite, and where
    nothing changes.
    """
    pairs: dict[int, RowPair] = {}
    records = []
    for layer, (neurons, (before, after)) in sorted(rows.items()):
        rounded = after.detach().to(before.dtype)
        if not bool(rounded.isfinite().all()):
            neuron = neurons[int((~rounded.isfinite()).any(1).nonzero()[0])]
            raise InvalidInputError(
                f"The edit would make the write vector of {neuron_name(layer, neuron)} infinite or NaN in "
                f"{str(before.dtype)[6:]}. Choose a smaller change, or more neurons."
            )
        pairs[layer] = RowPair(before.detach().cpu().contiguous(), rounded.cpu().contiguous())
        module = model.layers[layer].module
        digests = (row_digest(pairs[layer].before), row_digest(pairs[layer].after))
        records.append(EditedRows(layer, module, tuple(int(n) for n in neurons), *digests))
    if all(rows.before == rows.after for rows in records):
        raise InvalidInputError(
            "The edit changes no bit of any write vector. Choose other neurons, or a larger change."
        )
    record = EditRecord(
        name=name, kind="weights", form=form, written_by=root.written_by(), created=root.now(), model=model.name,
        model_fingerprint=model.fingerprint, dtype=model.dtype, rows=tuple(records), settings=settings or {},
        predicted=predicted or {},
    )  # fmt: skip
    return Edit(record, pairs)


def scaled_rows(
    neurons: Mapping[int, Sequence[int]], before: Mapping[int, Tensor], factor: float
) -> dict[int, tuple[Sequence[int], RowPair]]:
    """The rows of an edit that multiplies write vectors by `factor`, which has the effect of multiplying the activations.

    `before`: layer → the neurons' write vectors [neuron, d_model].
    """
    return {
        layer: (
            indices,
            # 0 × infinity would be NaN.
            RowPair(before[layer], torch.zeros_like(before[layer]) if factor == 0 else before[layer] * factor),
        )
        for layer, indices in neurons.items()
    }


def fields_of(capture: Capture, replacement: Replacement, settings: RewriteSettings) -> dict[str, Any]:
    """What the record of every rewrite of words says about it."""
    return {
        "capture": capture.record.name, "from": replacement.old_text, "to": replacement.new_text,
        "max_documents": settings.least_norm.max_documents, "seed": settings.seed,
    }  # fmt: skip


def fields_of_requests(capture: Capture, settings: RewriteSettings) -> dict[str, Any]:
    """What the record of every rewrite of prompts says about it: the requests with their tests, so that it can be evaluated."""
    return {
        "capture": capture.record.name, "requests": [request.to_json() for request in settings.requests],
        "max_documents": settings.least_norm.max_documents, "seed": settings.seed,
    }  # fmt: skip


def group_by_layer(neurons: Sequence[tuple[int, int]] | None) -> dict[int, list[int]] | None:
    """(layer, index) pairs as layer → indices, ascending."""
    if neurons is None:
        return None
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in sorted(set(neurons)):
        by_layer.setdefault(layer, []).append(neuron)
    return by_layer
