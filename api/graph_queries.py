"""What is asked of neuron graphs that a store holds: searched by token, compared with each other; and in-context neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.neurons import neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_names
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.engine.graphs.repeats import Repeats
    from actstore.engine.graphs.search import SearchResult
    from actstore.engine.graphs.similar import Pairs
    from actstore.store.graphs.reader import Graphs
    from actstore.store.model.root import Root

    Progress = Callable[[int, int], None]


@explains
class GraphQueries(Method):
    """Questions that neuron graphs answer."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sets of graphs that the store holds."""
        from actstore.store.graphs.record import graph_names

        return graph_names(self._store.folder)

    def open(self, name: str = "graphs") -> Graphs:
        """A set of graphs: `len`, iteration, `.graph("L3.N17")`, tables `.neurons` and `.nodes`."""
        from actstore.store.graphs.reader import open_graphs

        return open_graphs(self._store, name)

    def search(
        self,
        activating: str | int | Sequence[str | int] = (),
        context: str | int | Sequence[str | int] = (),
        *,
        match: str = "normalised",
        silent: bool = False,
        k: int = 20,
        paths: int = 3,
        name: str = "graphs",
    ) -> Answer[SearchResult]:
        """Neurons that fire on a token, or on it after another: those whose paths explain most firings first.

        - `activating`: the token at which a neuron fires, as text or id; one of several.
        - `context`: a token before it.
        - `match`: how texts match tokens: `normalised`, `exact`, `contains` or `regex`.
        - `silent`: include paths on which a neuron does not fire.
        - `k`: maximum number of neurons.
        - `paths`: maximum number of paths per neuron.

        Columns: neuron, score (of the neuron), path (its text), probability, fires, count.

        >>> store.graphs.search("York", context="New").table
        """
        from actstore.engine.graphs.search import search

        tokens = [_listed(activating), _listed(context)]
        result = search(
            self._store, self.open(name), activating=tokens[0], context=tokens[1], match=match, silent=silent, k=k,
            n_paths=paths,
        )  # fmt: skip
        return Answer(_path_table(self._store, result), result)

    def similar(
        self,
        neuron: NeuronInput | None = None,
        *,
        k: int = 20,
        least: float = 0.9,
        normalise: bool = True,
        name: str = "graphs",
    ) -> Answer[Pairs]:
        """Neurons whose graphs are like a neuron's, or without one all pairs of like neurons.

        - `k`: maximum number of rows.
        - `least`: of pairs, the least overlap, subset or prediction, a share.
        - `normalise`: tokens that differ in case and outer spaces only count as one.

        Columns: neuron, other, overlap (share of activating and context tokens in common, of the larger set), subset (of the
        smaller), prediction (cosine of the predicted probabilities).
        """
        from actstore.engine.graphs.similar import MEASURES, Similarity, compare, same_tokens
        from actstore.store.graphs.forest import Forest

        graphs = self.open(name)
        classes = same_tokens(self._store) if normalise else None
        if neuron is not None:
            ((layer, index),) = neuron_pairs(neuron)
            rows, pairs = compare(graphs, layer, index, classes)
            first = np.full(len(pairs.second[:k]), rows[pairs.first[0]] if len(pairs.first) else 0)
            names = [f"L{layer}.N{index}"] * len(first)
            others = graphs.names(rows[pairs.second[:k]])
        else:
            pairs = Similarity(Forest.of(graphs), classes).all(least)
            names, others = graphs.names(pairs.first[:k]), graphs.names(pairs.second[:k])
        measures = {measure: getattr(pairs, measure)[:k] for measure in MEASURES}
        columns = {"neuron": pa.array(names, pa.string()), "other": pa.array(others, pa.string())}
        return Answer(Table(pa.table(columns | measures)), pairs)

    def repeats(
        self,
        *,
        share: float = 0.5,
        k: int = 20,
        least_fires: int = 20,
        site: str = "mlp.post",
        capture: str | None = None,
    ) -> Answer[Repeats]:
        """In-context neurons: those that fire on a token because it came before in the same window.

        - `share`: a neuron fires from this share of its maximum.
        - `least_fires`: leave out neurons that fire less often.

        Columns: neuron, layer, index, score (how many times as likely repetition makes firing, at the least), probabilities
        of firing on repeated and on first occurrences.
        """
        from actstore.engine.graphs.repeats import measure_repeats
        from actstore.store.capture.saturation import overflow_sentences

        opened = self._store.capture(capture)
        repeats = measure_repeats(opened, site=site, share=share)
        rows = repeats.ranked(least_fires)[:k]
        layers, indices = repeats.layer[rows], repeats.neuron[rows]
        names = ("score", "repeated", "first", "fires_repeated", "fires_first", "same_repeated", "same_first")
        table = pa.table(
            {
                "neuron": pa.array(neuron_names(layers.tolist(), indices.tolist()), pa.string()),
                "layer": layers,
                "index": indices,
                **{name: getattr(repeats, name)[rows] for name in names},
            }
        )
        return Answer(Table(table), repeats, tuple(overflow_sentences(opened, [site])))


def _path_table(store: Root, result: SearchResult) -> Table:
    rows = [
        {
            "neuron": matched.neuron,
            "score": matched.score,
            "path": "".join(
                "…" if token == -1 else "" if token < 0 else store.token_text(token) for token in reversed(path.tokens)
            ),
            "probability": path.probability,
            "fires": path.fires,
            "count": path.count,
        }
        for matched in result.neurons
        for path in matched.paths
    ]
    kinds = (pa.string(), pa.float64(), pa.string(), pa.float64(), pa.int64(), pa.int64())
    names = ("neuron", "score", "path", "probability", "fires", "count")
    return Table(pa.Table.from_pylist(rows, pa.schema(list(zip(names, kinds, strict=True)))))


def _listed(tokens: str | int | Sequence[str | int]) -> list[str | int]:
    return [tokens] if isinstance(tokens, str | int) else list(tokens)
