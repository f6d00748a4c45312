"""The page that compares two models, or two captures on one plan: change scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from actstore.explorer.pages.numbers import short

if TYPE_CHECKING:
    from actstore.store.reader import Store

NEURONS: Final = 200


def change_page(store: Store, capture: str, site: str, /, *, other: Store, other_capture: str = "") -> dict[str, Any]:
    """The neurons that act most differently in another store, as `change --json` ranks them."""
    from actstore.api.change import ChangeMethod

    answer = ChangeMethod(store)(
        other, share=1.0, k=NEURONS, site=site, capture=capture, other_capture=other_capture or capture
    )
    rows = [{"neuron": row["name"], "score": row["score"]} for row in answer.table.to_pylist()]
    return {"neurons": short(rows), "n": len(answer.details.scores), "warnings": list(answer.warnings)}
