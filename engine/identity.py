"""A loaded model as a store knows it: its fingerprint, its record, and the weights that stay with its activations.

Knows nothing about captures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actstore.store import root
from actstore.store.errors import InvalidInputError
from actstore.store.records import LayerRecord, ModelRecord
from actstore.store.weights import write_weights

if TYPE_CHECKING:
    from actstore.engine.models import LoadedModel
    from actstore.store.folder import Folder


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
    )


def write_store_root(folder: Folder, model: LoadedModel, fingerprint: str, *, weights: bool) -> None:
    """Make `folder` a store of `model`: its weights unless told otherwise, its table of neurons, its record last."""
    known = model_record(model, fingerprint)
    norms = None
    if weights:
        vectors = {layer.layer: model.write_vectors(layer.layer) for layer in known.layers}
        layers = ((layer, _present(write_vectors=v, bias=model.output_bias(layer))) for layer, v in vectors.items())
        others = {"unembedding": model.unembedding(), "final_norm": model.final_norm_gain()}
        write_weights(folder, layers, {part: _present(weight=tensor) for part, tensor in others.items()})
        norms = {layer: v.float().norm(dim=1).cpu().numpy() for layer, v in vectors.items()}
    root.write_neurons(folder, known, norms)
    root.write_root(folder, known)


def _present(**tensors: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
