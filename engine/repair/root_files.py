"""The files beside a store's root, written again from the model that it was captured from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actstore.engine.capture.root import write_neuron_table, write_weight_parts
from actstore.engine.repair.outcome import Outcome
from actstore.engine.repair.scratch import copy_file, temporary_folder
from actstore.store.errors import ActstoreError, InvalidInputError
from actstore.store.layout import TOKENIZER_KEY, VOCABULARY_KEY, table_key, weights_key
from actstore.store.model.root import write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actstore.engine.repair.model import RepairModel
    from actstore.store.damage import Damage
    from actstore.store.reader import Store

_OF_TOKENIZER = (TOKENIZER_KEY, VOCABULARY_KEY)


def is_root_file(key: str) -> bool:
    """Whether `rewrite_root_files` can write what is under `key`."""
    return key in (*_OF_TOKENIZER, table_key(None, "neurons")) or key.startswith("weights/")


def rewrite_root_files(store: Store, damage: Sequence[Damage], model: RepairModel) -> list[Outcome]:
    """Write the damaged files of a store's root again.

    Raises as `RepairModel.load` does, before anything is changed.
    """
    loaded = model.load(store.model.dtype, store.model.fingerprint)
    outcomes: list[Outcome] = []
    keys = {one.key for one in damage}
    for one in sorted(damage, key=lambda one: one.key not in _OF_TOKENIZER):  # the table of neurons shows tokens
        try:
            if one.key in _OF_TOKENIZER:
                _rewrite_tokenizer(store, model, one.key)
            elif one.key == table_key(None, "neurons"):
                if VOCABULARY_KEY in keys and not any(
                    o.is_repaired and o.damage.key == VOCABULARY_KEY for o in outcomes
                ):
                    raise InvalidInputError("it shows tokens of the vocabulary, which is damaged itself")
                write_neuron_table(store.folder, loaded, store.model, weights=_has_weights(store))
            else:
                part = one.key.removeprefix("weights/").removesuffix(".safetensors")
                if not write_weight_parts(store.folder, loaded, store.model, {part}):
                    raise InvalidInputError(
                        f"{store.model.name} has no such weights; delete the file, it is of another store"
                    )
        except ActstoreError as error:
            outcomes.append(Outcome(one, False, str(error)))
        else:
            outcomes.append(Outcome(one, True, "written again from the model"))
    return outcomes


def _has_weights(store: Store) -> bool:
    first = weights_key(f"layer-{store.model.layers[0].layer}")
    return bool(store.model.weights) or store.folder.exists(first)


def _rewrite_tokenizer(store: Store, model: RepairModel, key: str) -> None:
    """Write one of the tokenizer's files, if the model's tokenizer is the one that the store's captures were planned with."""
    records = [store.capture(name).record for name in store.captures]
    expected = {record.plan.tokenizer_fingerprint for record in records} - {""}
    tokenizer = model.tokenizer(of_images=any(record.of_images for record in records))
    if tokenizer.fingerprint not in expected:
        raise InvalidInputError(
            "the model's tokenizer is not the one that the store was captured with; restore the file from a copy"
        )
    with temporary_folder() as scratch:
        write_tokenizer(scratch, tokenizer.to_json(), tokenizer.vocabulary(), tokenizer.fingerprint)
        copy_file(scratch, store.folder, key)
