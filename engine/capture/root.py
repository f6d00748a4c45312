"""The root of a store as its first capture writes it: the model's record, and the weights that stay with its activations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from actstore.engine.models.fingerprint import model_record
from actstore.store.model import root
from actstore.store.model.directions import WriteDirections
from actstore.store.model.top_tokens import (
    AFFORDABLE,
    find_top_tokens,
    operations,
    token_names,
    top_columns,
    writes_to_residual,
)
from actstore.store.model.weights import write_weights

if TYPE_CHECKING:
    from collections.abc import Collection

    import pyarrow as pa
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.files.records import ModelRecord
    from actstore.store.storage.folder import Folder


def write_store_root(folder: Folder, model: LoadedModel, fingerprint: str, *, weights: bool) -> None:
    """Make `folder` a store of `model`: its weights, unless `weights` is False, its table of neurons, its record last.

    The top tokens of neurons are left out where they would take minutes: on a CPU, of a large model.
    """
    record = model_record(model, fingerprint)
    if weights:
        record = dataclasses.replace(record, weights=write_weight_parts(folder, model, record))
    write_neuron_table(folder, model, record, weights=weights)
    root.write_root(folder, record)


def write_weight_parts(
    folder: Folder, model: LoadedModel, record: ModelRecord, parts: Collection[str] | None = None
) -> tuple[str, ...]:
    """Write the weights that stay with activations, some of their parts or all that the model has; the names of those."""

    def is_wanted(part: str) -> bool:
        return parts is None or part in parts

    layers = (
        (
            one.layer,
            _present(write_vectors=model.write_vectors(one.layer), bias=model.output_bias(one.layer))
            # A store of an earlier version is given the bytes that it had.
            | ({} if one.scaled_by is None else model.post_norm(one.layer)),
        )
        for one in record.layers
        if is_wanted(f"layer-{one.layer}")
    )
    others = {"unembedding": _present(weight=model.unembedding()), "final_norm": model.final_norm()}
    return write_weights(folder, layers, {part: tensors for part, tensors in others.items() if is_wanted(part)})


def write_neuron_table(folder: Folder, model: LoadedModel, record: ModelRecord, *, weights: bool) -> None:
    """Write the root's table of neurons; with `weights`, their norms and top tokens too."""
    norms = top_tokens = None
    if weights:
        vectors = {layer.layer: model.write_vectors(layer.layer) for layer in record.layers}
        norms = {layer: v.float().norm(dim=1).cpu().numpy() for layer, v in vectors.items()}
        top_tokens = _find_top_tokens(folder, model, record, vectors)
    root.write_neurons(folder, record, norms, top_tokens)


def _find_top_tokens(
    folder: Folder, model: LoadedModel, record: ModelRecord, vectors: dict[int, Tensor]
) -> dict[int, dict[str, pa.Array]]:
    """The columns of top tokens by layer, computed on the model's device; none where that costs too much, or without a head."""
    unembedding = model.unembedding()
    if unembedding is None or (not unembedding.is_cuda and operations(record, len(unembedding)) > AFFORDABLE):
        return {}
    name = token_names(folder)
    post_norm = {one.layer: {} if one.scaled_by is None else model.post_norm(one.layer) for one in record.layers}
    norms = model.final_norm(), post_norm.__getitem__
    directions = WriteDirections.of_model(vectors.__getitem__, unembedding, *norms)
    rows = directions.unembedding()
    return {
        layer: top_columns(find_top_tokens(directions.vectors(layer), rows, directions.gain), name)
        for layer, v in vectors.items()
        if v.shape[1] == unembedding.shape[1] and writes_to_residual(record, layer)
    }


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
