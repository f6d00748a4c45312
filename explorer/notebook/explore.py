"""`store.explore()` and `neuron.explore()`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from actstore.display.notebook import html, show_neuron
from actstore.store.errors import InvalidInputError

if TYPE_CHECKING:
    from actstore.store.neuron import Neuron
    from actstore.store.reader import Store

MIN_HEIGHT: Final = 200
LACKING: Final = (
    "<div style='opacity:.75;font-size:13px'>The explorer needs anywidget here: "
    "<code>pip install 'actstore[notebook]'</code>, then start the kernel anew. "
    "<code>actstore serve STORE</code> shows it in a browser.</div>"
)


class StillExplorer:
    """What is shown instead of the explorer where anywidget is not installed."""

    def __init__(self, name: str, still: str) -> None:
        self._name, self._still = name, still

    def __repr__(self) -> str:
        return f"{self._name}, without anywidget: pip install 'actstore[notebook]'"

    def _repr_html_(self) -> str:
        return self._still + LACKING


def explore(store: Store, neuron: Neuron | None, capture: str | None, site: str, height: int, *, card: bool) -> Any:
    """The widget at a neuron, or at the store's first page; a `StillExplorer` where anywidget is not installed."""
    if height < MIN_HEIGHT:
        raise InvalidInputError(f"`height` is a number of pixels, {MIN_HEIGHT} or more, found {height}.")
    if neuron is not None:
        opened = store.capture(capture)
        opened.check_neuron(neuron.layer, neuron.index, site)
        route = _route("neuron", opened.record.name, site, neuron.name)
        still = show_neuron(neuron, 5, opened.record.name, site, 12).html()
    else:
        route = "#/0" if capture is None else _route("overview", store.capture(capture).record.name, site)
        still = html(store)
    if find_spec("anywidget") is None:
        return StillExplorer(f"Explorer of {store.folder.location!r} at {route}", still)
    from actstore.explorer.notebook.widget import ExplorerWidget

    return ExplorerWidget(store, route, height, card, still)


def _route(*parts: str) -> str:
    return "/".join(["#/0", *(quote(part, safe="") for part in parts)])
