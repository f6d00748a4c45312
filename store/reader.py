"""A store opened for reading: its captures, their neurons, the tables and graphs over them. No model, no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actstore.store import hooks
from actstore.store.arguments import argument
from actstore.store.calls import checks
from actstore.store.capture.captures import Captures
from actstore.store.capture.reader import Capture
from actstore.store.capture.record import read_capture
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.neuron import Neuron
from actstore.store.neurons import parse_neuron
from actstore.store.sandbox import TIMEOUT_S
from actstore.store.sql import run_sql
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actstore.store.graphs.reader import Graphs, NeuronGraph
    from actstore.store.storage.folder import Folder

__all__ = ["Capture", "Store", "read_capture"]


@checks
class Store(Captures):
    """One model's captures. `actstore.open` gives one."""

    def __init__(self, location: str | Path | Folder) -> None:
        """Open the store at a path or URL; `NotFoundError` where there is none, `FormatError` for a newer one."""
        super().__init__(location)
        self._graphs: dict[str, Graphs] = {}

    def __repr__(self) -> str:
        return f"Store({self.folder.location!r}: {self.model.name}, captures {', '.join(self.captures) or 'none'})"

    def _repr_html_(self) -> str:
        return hooks.notebook_html(self)

    def neuron(self, layer: int | str, neuron: int | None = None) -> Neuron:
        """A neuron by layer and index, or by name: `store.neuron(3, 17)`, `store.neuron("L3.N17")`."""
        layer, neuron = argument("layer", layer, int | str), argument("neuron", neuron, int | None)
        if isinstance(layer, str):
            layer, neuron = parse_neuron(layer)
        layers = self.model.layers
        if neuron is None:
            raise InvalidInputError(
                'A neuron is a layer and an index, or a name: store.neuron(3, 17), store.neuron("L3.N17").'
            )
        if not 0 <= layer < len(layers):
            raise NotFoundError(f"{self.model.name} has layers 0 to {len(layers) - 1}, found layer {layer}.")
        if neuron < 0 or (neuron >= layers[layer].neurons and neuron >= self._widest(layer)):
            raise NotFoundError(f"Layer {layer} has neurons 0 to {layers[layer].neurons - 1}, found neuron {neuron}.")
        return Neuron(self, layer, neuron)

    def _widest(self, layer: int) -> int:
        """Values per token of a layer at the widest site that some capture has: one made of arrays may have any width."""
        captures, _ = self.read_captures()
        records = [capture.record for capture in captures.values()]
        return max((record.layers(site).get(layer, 0) for record in records for site in record.sites), default=0)

    def neurons(self, capture: str | None = None) -> Table:
        """One row per site and neuron of a capture: moments, quantiles, shares of positive values, the top exemplar."""
        return self.capture(capture).neurons()

    def sql(
        self, query: str, capture: str | None = None, *, memory: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> Table:
        """The result of a DuckDB query over the tables `neurons`, `documents`, `windows`, `tokens`, `vocabulary`, `model`.

        It reads the store's tables and nothing else: no other file, no network, no extension, and it writes nothing.

        - `memory`: bytes that the query may take [half of the machine's]
        - `timeout_s`: seconds that it may run
        """
        memory, timeout_s = argument("memory", memory, int | None), argument("timeout_s", timeout_s, float)
        return Table(run_sql(self, argument("query", query, str), capture, memory=memory, timeout_s=timeout_s))

    def explore(
        self,
        neuron: str | tuple[int, int] | None = None,
        *,
        capture: str | None = None,
        site: str = "mlp.post",
        height: int = 720,
    ) -> Any:
        """The explorer in a notebook, at a neuron or at the store's first page; pages are made as they are looked at.

        A widget where anywidget is installed (`pip install 'actstore[notebook]'`), whose `route` says where it is; elsewhere
        what a notebook shows of the store or the neuron.

        - `neuron`: `"L3.N17"` or `(3, 17)`.
        - `height`: in pixels.

        >>> store.explore("L3.N17", capture="corpus")
        """
        name, pixels = argument("capture", capture, str | None), argument("height", height, int)
        given = argument("neuron", neuron, str | tuple[int, int] | None)
        at = None if given is None else self.neuron(*given) if isinstance(given, tuple) else self.neuron(given)
        return hooks.explore(self, at, name, argument("site", site, str), pixels, card=False)

    def contributions(
        self,
        target: str | int | Sequence[str | int] | None = None,
        k: int = 20,
        *,
        capture: str | None = None,
        at: str | tuple[int, int] | tuple[int, int, int | None] | None = None,
        by: str | None = None,
        everywhere: bool = False,
        gain: bool = True,
        logits: bool = False,
        device: str = "auto",
        workers: int = 1,
    ) -> Table:
        """The k neurons that contribute most to a target token, over all layers together: name, layer, neuron, score, ….

        Needs torch, and a store that keeps the weights. `engine.contributions.rank` says what scores mean and which
        columns the table has.

        - `target`: the text or id of one token, or several; None asks each position about its own next token
        - `k`: number of neurons for each target and label
        - `capture`: name of the capture, which may be left out where there is one
        - `at`: one position, as "DOCUMENT:POSITION", "DOCUMENT:POSITION@WINDOW" or a tuple of these numbers
        - `by`: a label column; there is a ranking for each of its values
        - `everywhere`: over all positions of text, not those alone that the target follows
        - `gain`: with the final norm's gain; without, the form of Pan et al. (2024)
        - `logits`: in units of the logit; needs a capture of the last layer's `resid.post`
        - `device`: what sums up: `auto`, `cpu`, `cuda` or `cuda:1`
        - `workers`: number of processes that layers are divided among

        >>> store.contributions(" Paris", k=50)
        """
        query = {
            "k": k, "capture": capture, "at": at, "by": by, "everywhere": everywhere, "gain": gain, "logits": logits,
            "device": device, "workers": workers,
        }  # fmt: skip
        return Table(hooks.rank_contributions(self, target, query))

    def graph(self, layer: int | str, neuron: int | None = None, name: str = "graphs") -> NeuronGraph:
        """The graph of a neuron, of those that `store.graphs.build()` made as `name`: `store.graph(3, 17)`."""
        from actstore.store.graphs.reader import Graphs  # only here: it loads the compiler

        name = argument("name", name, str)
        selected_neuron = self.neuron(layer, neuron)
        if name not in self._graphs:
            self._graphs[name] = Graphs(self, name)
        return self._graphs[name].graph(selected_neuron.layer, selected_neuron.index)
