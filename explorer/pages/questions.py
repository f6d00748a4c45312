"""The pages of a capture of questions: the neurons relevant to each label by layer, and how each question was answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

from actstore.explorer.pages.numbers import short
from actstore.store.errors import NotFoundError

if TYPE_CHECKING:
    from actstore.store.reader import Store

NEURONS: Final = 20
QUERIES: Final = 200


def questions_page(
    store: Store, capture: str, /, *, by: str = "", method: str = "naica", attribution: str = "ig"
) -> dict[str, Any]:
    """Query-relevant neurons by layer and label, as `naica --json` selects them."""
    from actstore.api.naica import NaicaMethod
    from actstore.engine.naica.methods import METHODS
    from actstore.engine.naica.selection import count_by_layer, label_columns
    from actstore.store.capture.questions.attributions import open_attributions

    opened = open_attributions(store, capture)
    answer = NaicaMethod(store)(
        by=by or None, method=method, attribution=attribution, k=NEURONS, capture=capture, device="cpu"
    )
    layers = count_by_layer(answer.details, opened.capture.record.layers(opened.site), by or None)
    heading = answer.table.column_names[0]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in answer.table.to_pylist():
        groups.setdefault(str(row[heading]), []).append({"neuron": row["name"], "score": row["score"]})
    return short(
        {
            "by": by,
            "labels_known": label_columns(opened.queries),
            "method": method,
            "methods": list(METHODS),
            "attribution": attribution,
            "layers": list(layers.layers),
            "labels": list(layers.labels),
            "counts": layers.counts.tolist(),
            "shares": layers.shares.tolist(),
            "n_queries": layers.n_queries.tolist(),
            "neurons": groups,
            "queries": opened.queries.slice(0, QUERIES).to_pylist(),
            "n": opened.queries.num_rows,
            "warnings": list(answer.warnings),
        }
    )


def prompts_page(store: Store, capture: str, query: int, /) -> dict[str, Any]:
    """The prompts of a query, by its row: what was asked, what is right, what the model held for probable."""
    from actstore.store.capture.questions.attributions import open_attributions

    opened = open_attributions(store, capture)
    if not 0 <= query < opened.queries.num_rows:
        raise NotFoundError(f"There are queries 0 to {opened.queries.num_rows - 1}, found {query}.")
    prompts = opened.prompts
    rows = prompts.filter(pc.equal(prompts["query"], query))
    columns = ["prompt", "text", "answer", "options", "probabilities", "probability", "predicted", "correct"]
    return short({"query": opened.queries["query"][query].as_py(), "prompts": rows.select(columns).to_pylist()})
