"""The page of a token: the neurons that fire on it, that write it, and that have it in their graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actstore.explorer.pages.neuron import graph_sets
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.overview import STANDS_OUT, column_values
from actstore.explorer.pages.sets import SIDES, Grouped, NeuronsOfTokens, graph_set
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neurons import NeuronIndex, neuron_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.reader import Store

FOUND: Final = 60
"""Tokens of a search."""
NEURONS: Final = 50
"""Neurons of each list."""


def tokens_page(store: Store, /, *, search: str = "", match: str = "contains") -> dict[str, Any]:
    """The tokens that match a text, those that are all of it first."""
    from actstore.engine.graphs.token_sets import find_tokens

    try:
        ids = find_tokens(store, [search], match).tolist() if search else []
    except InvalidInputError as error:
        return {"tokens": [], "n": 0, "reason": str(error)}
    texts = {token: store.token_text(token) for token in ids}
    ranked = sorted(ids, key=lambda token: (texts[token].strip() != search.strip(), len(texts[token]), token))
    return {"tokens": [{"token": token, "text": texts[token]} for token in ranked[:FOUND]], "n": len(ids)}


def token_page(store: Store, capture: str, site: str, token: int, /) -> dict[str, Any]:
    """A token: what fires on it, promotes it, suppresses it, and has it in its graph."""
    limit = store.model.n_vocabulary
    if token < 0 or (limit is not None and token >= limit):
        raise NotFoundError(f"Token ids of {store.model.name} go from 0 to {(limit or 1) - 1}, found {token}.")
    return token_index(store, capture, site).document(store, token) | {"graphs": short(_in_graphs(store, token))}


_INDICES: Final[WeakKeyDictionary[Store, dict[tuple[str, str], TokenIndex]]] = WeakKeyDictionary()


def token_index(store: Store, capture: str, site: str) -> TokenIndex:
    """The neurons of each token, read once; of an unfinished capture each time."""
    opened = store.peek(capture)
    kept = _INDICES.setdefault(store, {})
    if not opened.is_finished:
        return TokenIndex(store, opened, site)
    if (capture, site) not in kept:
        kept[capture, site] = TokenIndex(store, opened, site)
    return kept[capture, site]


class TokenIndex:
    """Which neurons have their largest activation on a token, and which promote and suppress it most."""

    def __init__(self, store: Store, capture: Capture, site: str) -> None:
        """Reads a number per neuron from the capture's tables, and the lists of promoted tokens."""
        slots = top_slots(capture, site)
        self._has_exemplars = slots is not None
        ids = _ids_at(capture, slots) if slots is not None else np.empty(0, np.int64)
        self._peaks = Grouped(ids)
        self._stands_out, self._maxima = (column_values(capture, site, name) for name in (STANDS_OUT, "max"))
        self._capture, self._site = capture.record.name, site
        self._widths = capture.record.layers(site)
        self._writing = {name: NeuronsOfTokens(store, side) for name, side in SIDES.items()}

    def tokens(self) -> list[int]:
        """The tokens that have a neuron, ascending."""
        found = [self._peaks.keys, *(one.grouped.keys for one in self._writing.values())]
        return [token for token in np.unique(np.concatenate(found)).tolist() if token >= 0]

    def document(self, store: Store, token: int) -> dict[str, Any]:
        """The page of a token, but for the graphs that have it."""
        lists = {name: one.of(token) for name, one in self._writing.items()}
        return short(
            {
                "token": token,
                "text": store.token_text(token),
                "peaks": self._peaks_on(token),
                **{name: {"n": len(found), "neurons": found[:NEURONS]} for name, found in lists.items()},
            }
        )

    def _peaks_on(self, token: int) -> dict[str, Any]:
        """The neurons whose largest activation of the capture is on the token; those that stand out most first."""
        if not self._has_exemplars:
            return {"n": 0, "neurons": [], "reason": f"Capture {self._capture!r} recorded no exemplars."}
        numbers = self._peaks.of(token)
        scores = self._stands_out[numbers]
        order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:NEURONS]
        names = neuron_names_of(self._widths, numbers[order])
        found = [
            {"neuron": name, "max": float(self._maxima[number]), "stands_out": float(score)}
            for name, number, score in zip(names, numbers[order], scores[order], strict=True)
        ]
        return {"n": len(numbers), "neurons": found}


def neuron_names_of(widths: Mapping[int, int], numbers: NDArray[np.int64]) -> list[str]:
    """The names of neurons by their running number over layers of these widths."""
    index = NeuronIndex(widths)
    rows = np.searchsorted(index.starts, numbers, side="right") - 1
    return [
        neuron_name(int(index.layers[row]), int(number - index.starts[row]))
        for row, number in zip(rows, numbers, strict=True)
    ]


def top_slots(capture: Capture, site: str) -> NDArray[np.int64] | None:
    """The slot of each neuron's largest activation, -1 without; None where the capture has no exemplars."""
    table = (
        capture.table("neurons").read(["site", "top_token"]) if capture.is_finished else capture.neurons().to_arrow()
    )
    if "top_token" not in table.column_names:
        return None
    rows = table.filter(pc.equal(table["site"].cast(pa.string()), site))["top_token"]
    slots: NDArray[np.int64] = pc.fill_null(rows, -1).to_numpy().astype(np.int64)
    return slots


def _ids_at(capture: Capture, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token ids at some slots, -1 for a slot of -1; block by block, for a capture may have more tokens than fit."""
    ids, size = np.full(len(slots), -1, np.int64), capture.record.plan.block_slots
    blocks = np.where(slots < 0, -1, slots // size)
    for block in np.unique(blocks[blocks >= 0]).tolist():
        if block not in capture.blocks:
            continue
        here = np.flatnonzero(blocks == block)
        ids[here] = block_ids(capture, block)[slots[here] - block * size]
    return ids


def block_ids(capture: Capture, block: int) -> NDArray[np.int32]:
    """The token id of each used slot of a block."""
    plan = capture.block_plan(block)
    first = np.cumsum([0, *plan.windows["n_inputs"][:-1]])
    ids: NDArray[np.int32] = plan.inputs[first[plan.window_of_slot()] + plan.position]
    return ids


def _in_graphs(store: Store, token: int) -> dict[str, Any]:
    """The neurons with the token in their graph: as activating token, and as context."""
    sets = graph_sets(store)
    if not sets:
        return {
            "reason": "The store has no neuron graphs. `actstore graphs build STORE` makes them from the stored text."
        }
    from actstore.display.graphs.describe import describe_search
    from actstore.engine.graphs.search import search

    graphs = graph_set(store, sets[0])
    found: dict[str, Any] = {"name": sets[0]}
    for role in ("activating", "context"):
        activating, context = ([token], []) if role == "activating" else ([], [token])
        result = search(store, graphs, activating=activating, context=context, k=NEURONS, n_paths=2)
        document = describe_search(store, result)
        found[role] = {"n": document["matching"], "neurons": document["neurons"]}
    return found
