"""A loaded model as a store knows it: its fingerprint, its record, and the weights that stay with its activations.

Knows nothing about captures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.engine.contributions.top_tokens import (
    AFFORDABLE,
    find_top_tokens,
    operations,
    speaks,
    token_names,
    top_columns,
)
from actstore.store.errors import InvalidInputError
from actstore.store.files.records import LayerRecord, ModelRecord
from actstore.store.model import root
from actstore.store.model.weights import final_norm_of, write_weights

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from actstore.engine.models.load import LoadedModel
    from actstore.store.storage.folder import Folder


def fingerprint_of(model: LoadedModel) -> str:
    """The fingerprint by which stores know a loaded model."""
    return root.model_fingerprint(_config(model), model.fingerprint())


def _config(model: LoadedModel) -> dict[str, Any]:
    # Only what JSON can hold: a configuration may carry dtypes and classes.
    config: dict[str, Any] = json.loads(json.dumps(model.model.config.to_dict(), default=str))
    return config


def check_model(folder: Folder, expected: str, found: str, name: str) -> None:
    """Raise `InvalidInputError` where two fingerprints differ."""
    if expected != found:
        raise InvalidInputError(
            f"{folder} holds another model than {name}: its fingerprint is {expected[:12]}…, found {found[:12]}…. The weights, "
            "the configuration or --dtype differ. One store has one model: name another store."
        )


def model_record(model: LoadedModel, fingerprint: str) -> ModelRecord:
    """The record by which a store knows its model, whose `fingerprint_of` is given."""
    spec = model.spec
    return ModelRecord(
        name=spec.name,
        model_type=spec.model_type,
        kind=spec.kind,
        d_model=spec.d_model,
        n_vocabulary=spec.n_vocabulary,
        dtype=str(model.dtype).removeprefix("torch."),
        fingerprint=fingerprint,
        sites=spec.sites,
        layers=tuple(
            LayerRecord(s.layer, s.neurons, s.module, s.gated, s.block, s.stack, s.expert) for s in spec.layers
        ),
        config=_config(model),
        folder=str(Path(spec.name).absolute()) if Path(spec.name).is_dir() else None,
    )


def place_of(model: ModelRecord) -> str:
    """Where the model of a store is to be loaded from, whatever folder this is run in.

    Raises `InvalidInputError` where its own folder is gone: the Hub is not asked for a stranger's model of the same name.
    """
    if model.folder is None and model.name in (model.config.get("architectures") or ()):
        raise InvalidInputError(
            f"The model was captured from memory, as a {model.name} without a name or path. Save it with save_pretrained, and "
            "name that folder with --model."
        )
    if model.folder is None or Path(model.folder).is_dir():
        return model.folder or model.name
    raise InvalidInputError(
        f"The model {model.name} was captured from {model.folder}, where no folder is any more. Name its place with --model."
    )


def write_store_root(folder: Folder, model: LoadedModel, fingerprint: str, *, weights: bool) -> None:
    """Make `folder` a store of `model`: its weights unless told otherwise, its table of neurons, its record last.

    The neurons' top tokens are left out where they would take minutes: on a CPU, of a large model.
    """
    known = model_record(model, fingerprint)
    norms = top_tokens = None
    if weights:
        vectors = {layer.layer: model.write_vectors(layer.layer) for layer in known.layers}
        layers = ((layer, _present(write_vectors=v, bias=model.output_bias(layer))) for layer, v in vectors.items())
        others = {"unembedding": _present(weight=model.unembedding()), "final_norm": model.final_norm()}
        known = dataclasses.replace(known, weights=write_weights(folder, layers, others))
        norms = {layer: v.float().norm(dim=1).cpu().numpy() for layer, v in vectors.items()}
        top_tokens = _find_top_tokens(folder, model, known, vectors)
    root.write_neurons(folder, known, norms, top_tokens)
    root.write_root(folder, known)


def _find_top_tokens(
    folder: Folder, model: LoadedModel, known: ModelRecord, vectors: dict[int, Tensor]
) -> dict[int, dict[str, pa.Array]]:
    """The columns of top tokens by layer, made where the model lies; none where they cost too much, or it has no head."""
    unembedding, norm = model.unembedding(), final_norm_of(model.final_norm())
    if unembedding is None or (not unembedding.is_cuda and operations(known, len(unembedding)) > AFFORDABLE):
        return {}
    name = token_names(folder)
    return {
        layer: top_columns(find_top_tokens(v, unembedding, norm), name)
        for layer, v in vectors.items()
        if v.shape[1] == unembedding.shape[1] and speaks(known, layer)
    }


def _present(**tensors: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
