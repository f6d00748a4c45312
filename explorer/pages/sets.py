"""What a store keeps beside its captures, by neuron: promoted tokens, edits, explanations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.store.edits import edit_names, read_record
from actstore.store.errors import ActstoreError
from actstore.store.explanations.record import METHODS, explanation_names
from actstore.store.explanations.tables import explanation_table
from actstore.store.files.table_columns import ColumnReader
from actstore.store.layout import table_key
from actstore.store.model.root import TOP_TOKENS, check_beside_root
from actstore.store.neurons import NeuronIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.graphs.similar import Similarity
    from actstore.store.graphs.reader import Graphs
    from actstore.store.reader import Store


SIDES: Final = {"promoted": "top", "suppressed": "bottom"}
"""What a neuron does to tokens → how the columns of the root's table of neurons begin."""
_MODEL_TABLES: Final[WeakKeyDictionary[Store, ColumnReader]] = WeakKeyDictionary()
_GRAPHS: Final[WeakKeyDictionary[Store, dict[str, Graphs]]] = WeakKeyDictionary()
_SIMILARITIES: Final[WeakKeyDictionary[Store, dict[str, Similarity]]] = WeakKeyDictionary()
"""What was opened for one page serves the next, for as long as the store is open."""
PAIRS: Final = 100_000_000
"""Pairs of neurons whose graphs are compared from one object at most."""


def model_table(store: Store) -> ColumnReader:
    """The root's table of neurons, to read rows and columns of."""
    if store not in _MODEL_TABLES:
        key = table_key(None, "neurons")
        check_beside_root(store.folder, key, store.root_record)
        _MODEL_TABLES[store] = ColumnReader(store.folder, key)
    return _MODEL_TABLES[store]


def graph_set(store: Store, name: str) -> Graphs:
    """A set of graphs by name, opened once."""
    from actstore.store.graphs.reader import open_graphs  # only here: it loads the compiler

    kept = _GRAPHS.setdefault(store, {})
    if name not in kept:
        kept[name] = open_graphs(store, name)
    return kept[name]


def all_similarities(store: Store, name: str) -> Similarity | None:
    """What compares every graph of a set with every other, made once; None where that are too many pairs to have in memory."""
    kept = _SIMILARITIES.setdefault(store, {})
    if name not in kept:
        from actstore.engine.graphs.similar import Similarity, same_tokens
        from actstore.store.graphs.forest import Forest

        graphs = graph_set(store, name)
        if len(graphs.neurons) ** 2 > PAIRS:
            return None
        kept[name] = Similarity(Forest.of(graphs), same_tokens(store))
    return kept[name]


def promoted_tokens(store: Store, layer: int, index: int) -> dict[str, Any] | None:
    """A write vector's length, and the tokens that it promotes and suppresses most; None where these are not stored."""
    table = model_table(store)
    if not {*TOP_TOKENS} <= {*table.names}:
        return None
    row = NeuronIndex({one.layer: one.neurons for one in store.model.layers}).number(layer, index)
    (found,) = table.rows(row, row + 1, ["write_norm", *TOP_TOKENS]).to_pylist()
    if found["top_tokens"] is None:
        return None
    return {"norm": found["write_norm"]} | {
        name: [
            {"token": token, "text": text, "product": product}
            for token, text, product in zip(
                *(found[f"{side}_{c}"] for c in ("tokens", "texts", "products")), strict=True
            )
        ]
        for name, side in SIDES.items()
    }


class Grouped:
    """Where each value of an array occurs."""

    def __init__(self, values: NDArray[np.int64]) -> None:
        self._order = np.argsort(values, kind="stable")
        self.keys, starts = np.unique(values[self._order], return_index=True)
        self._starts = np.append(starts, len(values))

    def of(self, value: int) -> NDArray[np.int64]:
        """The places of a value, ascending."""
        row = int(np.searchsorted(self.keys, value))
        if row == len(self.keys) or self.keys[row] != value:
            return np.empty(0, np.int64)
        places: NDArray[np.int64] = self._order[self._starts[row] : self._starts[row + 1]]
        return places


class NeuronsOfTokens:
    """The neurons among whose promoted, or suppressed, tokens a token is."""

    def __init__(self, store: Store, side: str) -> None:
        """`side`: `top` or `bottom`; nobody writes anything where the store keeps no such tokens."""
        table = model_table(store)
        names = [f"{side}_tokens", f"{side}_products"]
        has_lists = {*names} <= {*table.names}
        rows = table.read(["name", *names]).combine_chunks() if has_lists else None
        tokens = rows[names[0]].combine_chunks() if rows is not None else pa.array([], pa.list_(pa.int32()))
        self.grouped = Grouped(pc.list_flatten(tokens).to_numpy(zero_copy_only=False).astype(np.int64))
        self._neuron = pc.list_parent_indices(tokens).to_numpy(zero_copy_only=False)
        self._names = rows["name"] if rows is not None else pa.chunked_array([pa.array([], pa.string())])
        products = rows[names[1]].combine_chunks() if rows is not None else pa.array([], pa.list_(pa.float32()))
        self._products = pc.list_flatten(products).to_numpy(zero_copy_only=False)

    def of(self, token: int) -> list[dict[str, Any]]:
        """The neurons of a token with its product, the largest first."""
        places = self.grouped.of(token)
        names = self._names.take(pa.array(self._neuron[places])).to_pylist()
        found = [
            {"neuron": name, "product": product}
            for name, product in zip(names, self._products[places].tolist(), strict=True)
        ]
        return sorted(found, key=lambda one: -abs(one["product"]))


def edits_of(store: Store, layer: int, index: int) -> list[dict[str, str]]:
    """The edits that change a neuron, its write vector or what it does; those that cannot be read are left to `verify`."""
    from actstore.engine.edit.specification import Specification

    found = []
    for name in edit_names(store.folder):
        try:
            record = read_record(store.folder, name)
            acting = {}
            if record.specification:
                acting = Specification.from_json(record.specification, f"edit {name!r}: specification").neurons()
        except ActstoreError:
            continue
        replaced = any(rows.layer == layer and index in rows.neurons for rows in record.rows)
        if replaced or index in acting.get(layer, ()):
            found.append({"name": name, "form": record.form})
    return found


def explanations_of(store: Store, name: str) -> list[dict[str, Any]]:
    """The explanations of a neuron in words, with their scores."""
    if not explanation_names(store.folder):
        return []
    table = explanation_table(store.folder, "explanations")
    rows = table.filter(pc.equal(table["name"], name)).to_pylist()
    return [
        {"set": row["explanations"], "text": row["explanation"], "model": row["model"]}
        | {"scores": [{"method": m, "value": row[key]} for m in METHODS if row[key := m.replace("-", "_")] is not None]}
        for row in rows
    ]
