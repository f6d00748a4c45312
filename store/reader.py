"""A store opened for reading: its captures, their neurons, the tables and graphs over them. No model, no transformers.

Knows nothing about how a store is written, and nothing about presentation; what a capture holds is in `store.capture`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from actstore.store import layout, views
from actstore.store.arguments import argument, given_fields
from actstore.store.capture.reader import Capture, read_capture
from actstore.store.errors import InvalidInputError, NotFoundError
from actstore.store.model import root
from actstore.store.neuron import Neuron, parse_neuron
from actstore.store.sql import run_sql
from actstore.store.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyarrow as pa

    from actstore.store.files.records import ModelRecord
    from actstore.store.graphs.reader import Graphs, NeuronGraph

__all__ = ["Capture", "Store", "read_capture"]


class Store:
    """One model's captures. `actstore.open` gives one."""

    def __init__(self, location: str | Path | Folder) -> None:
        """Open the store at a path or URL; `NotFoundError` where there is none, `FormatError` for a newer one."""
        self.folder = location if isinstance(location, Folder) else Folder(location)
        self.model: ModelRecord = root.read_root(self.folder)
        self._complete: dict[str, Capture] = {}
        self._graphs: dict[str, Graphs] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled store is where it is, and is opened anew by whoever unpickles it; the same of what comes from it."""
        return type(self), (self.folder,)

    def __repr__(self) -> str:
        return f"Store({self.folder.location!r}: {self.model.name}, captures {', '.join(self.captures) or 'none'})"

    def _repr_html_(self) -> str:
        return views.open_notebook_views().store_html(self)

    @property
    def captures(self) -> tuple[str, ...]:
        """The names of the captures that have a plan."""
        names = self.folder.names("captures")
        return tuple(name for name in names if name != "zarr.json" and read_capture(self.folder, name) is not None)

    def capture(self, name: str | None = None) -> Capture:
        """A capture by name; without one, the only capture or else the one called `corpus`."""
        name, names = argument("name", name, str | None), self.captures
        if name is None:
            name = names[0] if len(names) == 1 else layout.DEFAULT_CAPTURE
        if name in self._complete:
            return self._complete[name]
        record = read_capture(self.folder, name) if name in names else None
        if record is None:
            raise NotFoundError(
                f"{self.folder} has no capture {name!r}. Its captures are: {', '.join(names) or 'none'}."
            )
        capture = Capture(self, record)
        if capture.is_complete:
            # Nothing will be added to it, so what one question read (statistics, mapped shards) serves the next.
            self._complete[name] = capture
        return capture

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
        if not 0 <= neuron < layers[layer].neurons:
            raise NotFoundError(f"Layer {layer} has neurons 0 to {layers[layer].neurons - 1}, found neuron {neuron}.")
        return Neuron(self, layer, neuron)

    def neurons(self, capture: str | None = None) -> pa.Table:
        """A row per site and neuron of a capture: moments, quantiles, shares of positive values, the top exemplar."""
        return self.capture(capture).neurons()

    def sql(self, query: str, capture: str | None = None) -> pa.Table:
        """The result of a DuckDB query over the tables `neurons`, `documents`, `windows`, `tokens`, `vocabulary`, `model`."""
        return run_sql(self, argument("query", query, str), capture)

    def contributions(
        self, target: str | int | Sequence[str | int] | None = None, k: int = 20, **asked: Any
    ) -> pa.Table:
        """The k neurons that contribute most to a target token, over all layers together: neuron, layer, index, score, ….

        `target` is the text or id of one token, or several; None asks each position about its own next token. Further
        keywords are the fields of `store.contributions.Asked` (capture, at, by, everywhere, gain, logits); what scores mean
        is said there, and the table's columns in `Answer.table`. Needs torch, and a store that keeps the weights.

        >>> store.contributions(" Paris", k=50)
        """
        from actstore.engine.contributions.rank import Asked, rank_contributions  # only here: it loads torch

        wanted = argument("target", target, str | int | Sequence[str | int] | None)
        targets = () if wanted is None else wanted if isinstance(wanted, tuple) else (wanted,)
        return rank_contributions(self, targets, Asked(**given_fields(Asked, {"k": k, **asked}, "A question"))).table()

    def graph(self, layer: int | str, neuron: int | None = None, name: str = "graphs") -> NeuronGraph:
        """The graph of a neuron, of those that `actstore graph build` made as `name`: `store.graph(3, 17)`."""
        from actstore.store.graphs.reader import Graphs  # only here: it loads the compiler

        name = argument("name", name, str)
        found = self.neuron(layer, neuron)
        if name not in self._graphs:
            self._graphs[name] = Graphs(self, name)
        return self._graphs[name].graph(found.layer, found.index)

    @cached_property
    def vocabulary(self) -> pa.Table | None:
        """A row per token id: token, piece, text, bytes, special; None where only ids are known."""
        return root.read_vocabulary(self.folder)

    @cached_property
    def _token_bytes(self) -> list[bytes] | None:
        return self.vocabulary["bytes"].to_pylist() if self.vocabulary is not None else None

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token id stands for; `<17>` where the store knows no vocabulary."""
        known = self._token_bytes
        return known[token] if known is not None and 0 <= token < len(known) else f"<{token}>".encode()

    def token_text(self, token: int) -> str:
        """The text of one token; the bytes of half a character show as U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")

    def text(self, tokens: Iterable[int]) -> str:
        """The text of a run of token ids."""
        return b"".join(self.token_bytes(int(t)) for t in tokens).decode(errors="replace")
