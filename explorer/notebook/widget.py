"""The widget: a frame with the explorer, whose questions the kernel answers. Only imported where anywidget is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from actstore.explorer.bundle_files import WIDGET, bundle_text
from actstore.explorer.notebook.answers import answer
from actstore.explorer.notebook.page import notebook_page

if TYPE_CHECKING:
    from actstore.store.reader import Store


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer of a store below a cell.

    `route` is where it is, such as `#/0/neuron/corpus/mlp.post/L3.N17`; setting it goes there.
    """

    _esm = bundle_text(WIDGET)
    page = traitlets.Unicode().tag(sync=True)
    route = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    card = traitlets.Bool().tag(sync=True)

    def __init__(self, store: Store, route: str, height: int, card: bool, still: str) -> None:
        """`still`: the HTML that is shown where no kernel runs, as in a notebook that is printed or read on a web page."""
        super().__init__(page=notebook_page(route, card=card), route=route, height=height, card=card)
        self._store, self._still = store, still
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        return f"Explorer of {self._store.folder.location!r} at {self.route}"

    def _answer(self, _: object, message: Any, __: object) -> None:
        """Answer what a frame asks; what is no question is left alone."""
        if isinstance(message, dict) and isinstance(address := message.get("address"), str):
            asked = {"view": message.get("view"), "id": message.get("id")}
            self.send(asked | answer(self._store, address))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is not None:
            bundle[0]["text/html"] = self._still
        return bundle
