"""One neuron's graph: its paths, what it predicts, and what can be derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, overload

import numpy as np
import pyarrow as pa

from actstore.kernels.suffix_trie.api import predict
from actstore.store import hooks
from actstore.store.calls import checks
from actstore.store.errors import InvalidInputError
from actstore.store.graphs.nodes import BOUNDARY, IGNORE
from actstore.store.neurons import neuron_name
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from actstore.kernels.suffix_trie.api import Nodes, Predictions
    from actstore.store.capture.captures import Captures
    from actstore.store.graphs.record import GraphRecord
    from actstore.store.hooks import Drawn


class GraphSet:
    """The graphs that one build made of many neurons, as tables."""

    store: Captures
    name: str
    record: GraphRecord
    neurons: pa.Table
    """One row per neuron, as `record.NEURONS`."""
    nodes: pa.Table
    """One row per node, as `record.NODES`."""


class GraphPath(NamedTuple):
    """A path of a graph that ends."""

    tokens: tuple[int, ...]
    """From the token at which the neuron fires backwards; `nodes.IGNORE` for any token, `nodes.BOUNDARY` before the first."""
    probability: float
    """Of firing where no longer path of the graph matches."""
    value: float
    """Predicted there, as a share of the graph's `maximum`."""
    count: int  # type: ignore[assignment]
    """Of all occurrences, those included for which a longer path answers."""
    fires: int
    """How often it fired at these."""


@checks
@dataclass(frozen=True, eq=False)
class NeuronGraph:
    """What makes one neuron fire."""

    _reached_as: ClassVar[str] = "graph"

    store: Captures
    layer: int
    neuron: int
    maximum: float
    threshold: float
    n_events: int
    status: str
    """Empty, or why there is no graph."""
    nodes: Nodes
    """Of this neuron alone; parents count from its first node."""
    importance: NDArray[np.float32]
    """[node] share of the activation that goes when the token is masked; NaN where nobody asked the model."""
    graphs: GraphSet | None = None
    """The set that it is of."""

    @property
    def name(self) -> str:
        """Such as `L3.N17`."""
        return neuron_name(self.layer, self.neuron)

    def __repr__(self) -> str:
        return f"NeuronGraph({self.name}: {self.status or f'{len(self)} nodes'})"

    def _repr_html_(self) -> str:
        return self.draw().svg()

    def __len__(self) -> int:
        return len(self.nodes.token)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each node, by token; those at depth 0 under -1."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.nodes.parent.tolist()):
            children.setdefault(parent, []).append(node)
        return children

    def text(self, token: int) -> str:
        """The text of a node's token; `…` for any token, `^` for a window's beginning."""
        return {IGNORE: "…", BOUNDARY: "^"}.get(token) or self.store.token_text(token)

    def path(self, node: int) -> tuple[int, ...]:
        """The tokens from depth 0 to a node."""
        tokens: list[int] = []
        while node >= 0:
            tokens.append(int(self.nodes.token[node]))
            node = int(self.nodes.parent[node])
        return tuple(reversed(tokens))

    def paths(self) -> Iterator[GraphPath]:
        """Every path that ends, in the order of the nodes."""
        n = self.nodes
        for node in np.flatnonzero(n.ends).tolist():
            yield GraphPath(
                self.path(node),
                float(n.probability[node]),
                float(n.value[node]),
                int(n.count[node]),
                int(n.fires[node]),
            )

    @overload
    def predict(self, window: str) -> Table: ...
    @overload
    def predict(self, window: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]: ...
    def predict(self, window: str | Sequence[int] | NDArray[Any]) -> Table | NDArray[np.float32]:
        """The expected activation at each token of one window, in shares of the neuron's maximum; 0 where no path matches.

        Of token ids, an array [position]. Of a text, a table with one row per token: token, text, value, probability, fires.
        The text is tokenised as those of the graphs' capture were, special tokens before it included; `InvalidInputError`
        where the store has no tokenizer. No model is needed, and neither are the libraries transformers and tokenizers.

        >>> store.graph(3, 17).predict("She walked to the bank.")
        """
        ids = _checked(hooks.open_graph_views().encode(self, window) if isinstance(window, str) else window)
        predictions = predict(self.nodes, ids, threads=1)
        if not isinstance(window, str):
            values: NDArray[np.float32] = predictions.value[0]
            return values
        table = pa.table(
            {
                "token": ids,
                "text": pa.array([self.store.token_text(token) for token in ids.tolist()], pa.string()),
                "value": predictions.value[0],
                "probability": predictions.probability[0],
                "fires": self._fires(predictions),
            }
        )
        return Table(table)

    def fires(self, ids: Sequence[int] | NDArray[Any]) -> NDArray[np.bool_]:
        """Whether the neuron fires at each token: where the path's probability is at least the graph's threshold."""
        return self._fires(predict(self.nodes, _checked(ids), threads=1))

    def _fires(self, predictions: Predictions) -> NDArray[np.bool_]:
        fires: NDArray[np.bool_] = (predictions.node[0] >= 0) & (
            predictions.probability[0] >= np.float32(self.threshold)
        )
        return fires

    def draw(self, *, paths: int = 40, with_ignore: bool | None = None) -> Drawn:
        """The graph drawn as a tree: its `paths` paths that matter most, 0 for all.

        `print` shows it as text, rich in colours, a notebook as a picture; `.svg()`, `.html()` and `.dot()` give these, and
        `.save("l3n17.svg")` writes one. Without `with_ignore` tokens that may be any are left out; unless told, they are for
        graphs of the published method.

        >>> print(store.graph(3, 17).draw(paths=8))
        """
        return hooks.open_graph_views().draw(self, paths=paths, with_ignore=with_ignore)

    def similar(self, k: int = 10, *, normalise: bool = True) -> Table:
        """The k neurons with the most similar graphs: neuron, layer, index, overlap, subset, prediction; best prediction first.

        `overlap` is the share of activating and of context tokens in common, of the larger set, `subset` of the smaller;
        `prediction` the cosine of the probabilities of firing that the two graphs predict over the corpus. With `normalise`,
        tokens that differ in case and outer spaces only count as one. Neurons that share no activating token are not listed.
        """
        return Table(hooks.open_graph_views().similar(self, k, normalise=normalise))


def _checked(ids: Sequence[int] | NDArray[Any]) -> NDArray[np.int32]:
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or (tokens.size and (tokens.dtype.kind not in "iu" or tokens.min() < 0)):
        raise InvalidInputError("A graph predicts a text, or a list of token ids, 0 or more.")
    return tokens.astype(np.int32)
