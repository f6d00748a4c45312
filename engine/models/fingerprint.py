"""A loaded model as a store records it: its fingerprint and its record."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actstore.store.errors import InvalidInputError
from actstore.store.files.records import LayerRecord, ModelRecord
from actstore.store.model import root
from actstore.store.tokens import MADE_OF_ARRAYS

if TYPE_CHECKING:
    from actstore.engine.models.load import LoadedModel
    from actstore.store.storage.folder import Folder


def fingerprint_of(model: LoadedModel) -> str:
    """The fingerprint by which stores identify a loaded model."""
    return model_fingerprint(_config(model), model.fingerprint())


def _without(config: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    """A configuration without some keys, also in nested configurations."""
    return {
        key: _without(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys
    }


def model_fingerprint(config: dict[str, Any], weights: str) -> str:
    """The identity of a model: the fingerprint of its weights and of the configuration that determines what they compute."""
    relevant = _without(config, {"_name_or_path", "transformers_version", "name_or_path", "dtype", "torch_dtype"})
    return hashlib.sha256((json.dumps(relevant, sort_keys=True, default=str) + weights).encode()).hexdigest()


def _config(model: LoadedModel) -> dict[str, Any]:
    # Only what JSON can hold: a configuration may carry dtypes and classes.
    config: dict[str, Any] = json.loads(json.dumps(model.model.config.to_dict(), default=str))
    return config


def check_model(folder: Folder, expected: str, actual: str, name: str) -> None:
    """Raise `InvalidInputError` where two fingerprints differ."""
    if expected != actual:
        raise InvalidInputError(
            f"{folder} holds another model than {name}: its fingerprint is {expected[:12]}…, found {actual[:12]}…. The "
            "weights, the configuration or `dtype` differ. One store has one model: name another store."
        )


def check_root(folder: Folder, actual: str, name: str) -> None:
    """Raise `InvalidInputError` where a store, if there is one, has another model than that of a fingerprint."""
    if not root.is_store(folder):
        return
    held = root.read_root(folder)
    if held.fingerprint != actual:
        raise InvalidInputError(
            f"{folder} holds another model than {name}: {held.name}, whose fingerprint is {held.fingerprint[:12]}…, found "
            f"{actual[:12]}…. The weights, the configuration or `dtype` differ. One store has one model: name another store."
        )


def model_record(model: LoadedModel, fingerprint: str) -> ModelRecord:
    """The record of a model in a store; `fingerprint` is its `fingerprint_of`."""
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
            LayerRecord(
                s.layer, s.neurons, s.module, s.gated, s.block, s.stack, s.expert, ",".join(model.scaled_by(s.layer))
            )
            for s in spec.layers
        ),
        config=_config(model),
        folder=str(Path(spec.name).absolute()) if Path(spec.name).is_dir() else None,
    )


def location_of(model: ModelRecord) -> str:
    """The folder or Hub id from which a store's model is to be loaded, whatever the working directory.

    Raises `InvalidInputError` where its own folder is gone: a model of the same name on the Hub may be another one.
    """
    if model.model_type == MADE_OF_ARRAYS:
        raise InvalidInputError(
            f"The store was made of arrays alone, and has no model: {model.name} is a name. Make it again with `model`, the "
            "one that computed them."
        )
    if model.folder is None and model.name in (model.config.get("architectures") or ()):
        raise InvalidInputError(
            f"The model was captured from memory, as a {model.name} without a name or path. Save it with save_pretrained, and "
            "pass that folder as `model`."
        )
    if model.folder is None or Path(model.folder).is_dir():
        return model.folder or model.name
    raise InvalidInputError(
        f"The model {model.name} was captured from {model.folder}, which no longer exists. Pass its location as `model`."
    )
