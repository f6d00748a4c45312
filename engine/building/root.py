"""The root of a store that a builder writes to: that of a model, that which is there, or one of arrays alone."""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from actstore.engine.capture.root import write_store_root
from actstore.engine.models.fingerprint import check_root, fingerprint_of
from actstore.engine.models.sources import ModelSource
from actstore.store.errors import InvalidInputError
from actstore.store.files.record_checks import NEURON_SITES, STREAM_SITES
from actstore.store.files.records import LayerRecord, ModelRecord
from actstore.store.layout import VOCABULARY_KEY
from actstore.store.model import root
from actstore.store.model.remains import remove_beginning, unexpected_entry
from actstore.store.storage.lock import own_root
from actstore.store.tokens import MADE_OF_ARRAYS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from actstore.engine.building.arrays import Place
    from actstore.engine.models.in_memory import ModelInput
    from actstore.engine.models.load import LoadedModel
    from actstore.engine.models.tokenizer.load import TextTokenizer
    from actstore.store.storage.folder import Folder


@dataclasses.dataclass(frozen=True)
class NewRoot:
    """What a store that is not there yet is made of."""

    model: LoadedModel | None
    """The model that computed the arrays; None where it is not at hand."""
    tokenizer: TextTokenizer | None
    name: str
    """Of the model, where only its name is known."""


def load_root(
    model: ModelInput | None, name: str, tokenizer: str | Path | PreTrainedTokenizerBase | None, *, trusted: bool
) -> NewRoot:
    """The model, if there is one, and the tokenizer, its own unless another is given; `trusted`: with their own code."""
    loaded = text = None
    if model is not None:
        source = ModelSource.of(model)
        with source.ready_to_run():
            device = "auto" if source.model is not None else "cpu"
            loaded = source.load(device=device, trust_remote_code=trusted)
        with suppress(InvalidInputError):  # arrays need no tokenizer; what needs one says so
            text = source.load_tokenizer(trust_remote_code=trusted) if tokenizer is None else None
    if tokenizer is not None:
        text = ModelSource(str(name)).load_tokenizer(tokenizer, trust_remote_code=trusted)
    return NewRoot(loaded, text, name)


def check_target(folder: Folder, name: str, is_replaced: bool) -> None:
    """Raise `InvalidInputError` where there is the capture already, or where the folder holds something else."""
    from actstore.store.reader import read_capture

    if root.is_store(folder):
        record = read_capture(folder, name)
        if record is None:
            return
        is_built = record.settings.get("command") == "import"
        if not is_replaced:
            advice = "Replace it with `replace=True`, or give this one another `name`" if is_built else "Name another"
            raise InvalidInputError(f"{folder} already has a capture {name!r}. {advice}.")
        if not is_built:
            raise InvalidInputError(
                f"Capture {name!r} of {folder} was not made of arrays, and is not replaced by some. Name another."
            )
    elif folder.local_path() is not None and (entry := unexpected_entry(folder)) is not None:
        raise InvalidInputError(f"{folder} is a folder with other content ({entry}, …). Name a new path for the store.")


def write_root(
    folder: Folder,
    new: NewRoot,
    widths: Mapping[Place, int],
    dtype: str,
    vocabulary: tuple[pa.Table, str] | None,
) -> ModelRecord:
    """Make the folder a store where it is none, or check that its model may have arrays of these widths; its model.

    `vocabulary`: a table of tokens' texts and its fingerprint, where the tokens came as texts.
    """
    with own_root(folder):
        is_first = not root.is_store(folder)
        if is_first:
            remove_beginning(folder)
        if new.tokenizer is not None:
            tokenizer = new.tokenizer
            root.write_tokenizer(folder, tokenizer.to_json(), tokenizer.vocabulary(), tokenizer.fingerprint)
        elif vocabulary is not None and not folder.exists(VOCABULARY_KEY):
            root.write_tokenizer(folder, None, *vocabulary)
        if is_first and new.model is not None:
            write_store_root(folder, new.model, fingerprint_of(new.model), weights=True)
        elif is_first:
            record = arrays_record(new.name, widths, dtype)
            root.write_neurons(folder, record, None)
            root.write_root(folder, record)
    if new.model is not None:
        check_root(folder, fingerprint_of(new.model), new.model.spec.name)
    record = root.read_root(folder)
    check_widths(record, widths, str(folder))
    return record


def arrays_record(name: str, widths: Mapping[Place, int], dtype: str) -> ModelRecord:
    """The record of a model of which arrays are all that is known.

    A layer has as many neurons as its `mlp.post` is wide, or else its first site; one without arrays has one, unknown.
    """
    n_layers = max(layer for _, layer in widths) + 1
    of_layer: dict[int, int] = {}
    for (_, layer), width in sorted(widths.items(), key=lambda item: item[0][0] not in NEURON_SITES):
        of_layer.setdefault(layer, width)
    stream = [width for (site, _), width in widths.items() if site in STREAM_SITES]
    layers = tuple(
        LayerRecord(layer, of_layer.get(layer, 1), "", False, layer, "decoder", None) for layer in range(n_layers)
    )
    digest = hashlib.sha256(f"{MADE_OF_ARRAYS}:{name}:{[one.neurons for one in layers]}".encode()).hexdigest()
    sites = tuple(dict.fromkeys(site for site, _ in widths))
    d_model = stream[0] if stream else max(widths.values())
    return ModelRecord(name, MADE_OF_ARRAYS, "causal", d_model, None, dtype, digest, sites, layers, {})


def check_widths(model: ModelRecord, widths: Mapping[Place, int], where: str) -> None:
    """Raise `InvalidInputError` where a layer is none of the model's, or a site of the model has another width."""
    for (site, layer), width in widths.items():
        if layer >= len(model.layers):
            raise InvalidInputError(
                f"{where} is of {model.name}, which has layers 0 to {len(model.layers) - 1}: found an array of layer {layer}."
            )
        expected: Any = None
        if site in NEURON_SITES:
            expected = model.layers[layer].neurons
        elif site in STREAM_SITES and model.model_type != MADE_OF_ARRAYS:
            expected = model.d_model
        if expected not in (None, width):
            raise InvalidInputError(
                f"{site} of layer {layer} has {expected} values per token in {where}, found an array of {width}. Check the "
                "layer; another thing needs a site of another name, such as sae.features."
            )


def special_ids(folder: Folder, new: NewRoot, given: Collection[int]) -> frozenset[int]:
    """The tokens that are kept out of statistics: those given, of the tokenizer, and of the store's vocabulary."""
    ids = frozenset(given) | (new.tokenizer.special_ids if new.tokenizer is not None else frozenset())
    vocabulary = root.read_vocabulary(folder) if new.tokenizer is None else None
    if vocabulary is not None:
        ids |= frozenset(vocabulary.filter(vocabulary["special"])["token"].to_pylist())
    return ids
