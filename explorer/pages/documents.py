"""The page of a text: a document of a capture, and what chosen neurons do at each of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from actstore.explorer.pages.images import has_image
from actstore.explorer.pages.numbers import short
from actstore.explorer.pages.overview import STANDS_OUT, column_values
from actstore.explorer.pages.tokens import block_ids, neuron_names_of, top_slots
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.layout import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from actstore.store.capture.reader import Capture
    from actstore.store.neuron import Neuron
    from actstore.store.reader import Store

LISTED: Final = 100
"""Documents of a list."""
TOKENS: Final = 1000
"""Tokens of a document that are shown at once."""
NEURONS: Final = 8
"""Neurons that are shown at once."""
FILE_DIGITS: Final = 3
"""Significant digits of activations of a whole text in files."""


def documents_page(store: Store, capture: str, /, *, first: int = 0, search: str = "") -> dict[str, Any]:
    """Documents of a capture, from the number `first` on, whose source contains a text."""
    opened = store.peek(capture)
    table = opened.documents().to_arrow()
    sources = np.char.lower(np.array([str(source) for source in table["source"].to_pylist()], dtype=np.str_))
    matching = np.flatnonzero(np.char.find(sources, search.lower()) >= 0) if len(sources) else np.empty(0, np.int64)
    rows = matching[max(0, first) : max(0, first) + LISTED].tolist()
    return {"documents": document_rows(opened, rows), "n": len(matching), "first": max(0, first)}


def document_rows(capture: Capture, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Number, source, tokens and labels of some documents."""
    table = capture.documents().to_arrow()
    columns = [name for name in ("document", "source", "n_tokens") if name in table.column_names]
    labels = [name for name in capture.record.plan.label_columns if name in table.column_names and name not in columns]
    shown = table.take(rows).select([*columns, *labels]).to_pylist()
    return [{name: row[name] for name in columns} | {"labels": {name: row[name] for name in labels}} for row in shown]


def text_page(
    store: Store, capture: str, site: str, document: int, /, *, neurons: str = "", first: int = 0
) -> dict[str, Any]:
    """The tokens of a document from the number `first` on, and the activations of some neurons at each."""
    names = [name.strip() for name in neurons.split(",") if name.strip()]
    if len(names) > NEURONS:
        raise InvalidInputError(f"At most {NEURONS} neurons are shown at once, found {len(names)}.")
    opened = store.peek(capture)
    return short(_text(store, opened, site, document, first, lambda peaks: [store.neuron(name) for name in names]))


def text_of_peaks(
    store: Store, capture: str, site: str, document: int, first: int, is_held: Callable[[str], bool]
) -> dict[str, Any]:
    """The same for files: with the neurons of `peaks` that are held there, for nobody can ask for others."""
    opened = store.peek(capture)

    def choose(peaks: list[str]) -> list[Neuron]:
        if not opened.record.encoding.keeps_values:
            return []
        return [store.neuron(name) for name in peaks if is_held(name)][:NEURONS]

    found = _text(store, opened, site, document, first, choose)
    found["peaks"] = [one["neuron"] for one in found["neurons"]]
    return short(found, FILE_DIGITS)


def _text(
    store: Store,
    opened: Capture,
    site: str,
    document: int,
    first: int,
    choose: Callable[[list[str]], list[Neuron]],
) -> dict[str, Any]:
    """A text with the neurons that `choose` takes, given those that are highest in it."""
    slots, capture = _slots_of(opened, document), opened.record.name
    shown = slots[max(0, first) : max(0, first) + TOKENS]
    peaks = _peaks_in(opened, site, slots)
    selected = choose(peaks)
    if selected and not opened.record.encoding.keeps_values:
        raise InvalidInputError(
            f"Capture {capture!r} has precision none: it keeps statistics and exemplars, and no activations of its texts."
        )
    for neuron in selected:
        opened.check_neuron(neuron.layer, neuron.index, site)
    return {
        "capture": capture,
        "site": site,
        "document": document,
        "source": opened.document_source(document),
        "n_tokens": len(slots),
        "first": max(0, first),
        "tokens": _tokens(store, opened, shown),
        "neurons": [
            {
                "neuron": neuron.name,
                "max": neuron.statistics(capture, site).get("max"),
                "values": _values(opened, neuron.layer, neuron.index, site, shown),
            }
            for neuron in selected
        ],
        "peaks": peaks,
    } | ({"image": has_image(store, opened, document)} if opened.record.of_images else {})


def documents_with_peaks(store: Store, capture: str, site: str, n: int) -> list[int]:
    """The n documents in which most neurons have their largest activation, ascending; the first ones where none is known."""
    opened = store.peek(capture)
    tops, windows = top_slots(opened, site), opened.windows().to_arrow()
    counts = np.zeros(opened.record.plan.n_documents, np.int64)
    if tops is not None and len(windows):
        starts, documents = windows["slot_start"].to_numpy(), windows["document"].to_numpy()
        order = np.argsort(starts, kind="stable")
        places = np.searchsorted(starts[order], tops[tops >= 0], side="right") - 1
        np.add.at(counts, documents[order][places], 1)
    return sorted(np.argsort(-counts, kind="stable")[:n].tolist())


def _slots_of(capture: Capture, document: int) -> NDArray[np.int64]:
    """The committed slots of a document's tokens, in their order."""
    n = capture.record.plan.n_documents
    if not 0 <= document < n:
        raise NotFoundError(f"Capture {capture.record.name!r} has documents 0 to {n - 1}, found {document}.")
    windows = capture.windows().to_arrow()
    here = np.flatnonzero(
        (windows["document"].to_numpy() == document) & np.isin(windows["block"].to_numpy(), capture.blocks)
    )
    starts, counts = (windows[name].to_numpy()[here] for name in ("slot_start", "n_slots"))
    parts = [np.arange(start, start + n) for start, n in zip(starts.tolist(), counts.tolist(), strict=True)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _tokens(store: Store, capture: Capture, slots: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Text, id and slot of the tokens at some slots; special ones, which statistics leave out, say so."""
    size, found = capture.record.plan.block_slots, []
    for block in dict.fromkeys((slots // size).tolist()):
        ids, modality = block_ids(capture, block), capture.block_plan(block).modality
        for slot in slots[slots // size == block].tolist():
            token = int(ids[slot - block * size])
            row: dict[str, Any] = {"token": token, "text": store.token_text(token)}
            found.append(row | ({"special": True} if modality[slot - block * size] == SPECIAL else {}))
    return found


def _values(capture: Capture, layer: int, index: int, site: str, slots: NDArray[np.int64]) -> list[float | None]:
    size = capture.record.plan.block_slots
    parts = [
        capture.block_row(layer, index, block, site, saturated=True)[slots[slots // size == block] - block * size]
        for block in dict.fromkeys((slots // size).tolist())
    ]
    values: list[float] = np.concatenate([np.empty(0, np.float32), *parts]).tolist()
    return [value if value == value else None for value in values]


def _peaks_in(capture: Capture, site: str, slots: NDArray[np.int64]) -> list[str]:
    """The neurons whose largest activation of the whole capture is in the document, those that stand out most first."""
    tops = top_slots(capture, site)
    if tops is None:
        return []
    numbers = np.flatnonzero(np.isin(tops, slots))
    scores = np.nan_to_num(column_values(capture, site, STANDS_OUT)[numbers], nan=-np.inf)
    return neuron_names_of(capture.record.layers(site), numbers[np.argsort(-scores, kind="stable")][:20])
