"""What is asked of neuron graphs that a store holds: searched by token, compared with each other; and in-context neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.neurons import neuron_pairs
from actstore.api.results import Answer
from actstore.store.neurons import neuron_columns, parse_neuron
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.engine.graphs.repeats import Repeats
    from actstore.engine.graphs.search import PathMatch, SearchResult
    from actstore.engine.graphs.similar import Pairs
    from actstore.store.graphs.reader import Graphs
    from actstore.store.model.root import Root

    Progress = Callable[[int, int], None]


@explains
class GraphQueries(Method):
    """Questions that neuron graphs answer."""

    _reached_as = "store.graphs"

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

        Columns: name, layer, neuron, score (of the neuron), path (its text), probability, fires, count.

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

        Columns: name, layer, neuron; other_name, other_layer, other_neuron; overlap (share of activating and context tokens in
        common, of the larger set), subset (of the smaller), prediction (cosine of the predicted probabilities).
        """
        from actstore.engine.graphs.similar import MEASURES, Similarity, compare, find_row, same_tokens
        from actstore.store.graphs.forest import Forest

        graphs = self.open(name)
        classes = same_tokens(self._store) if normalise else None
        if neuron is not None:
            ((layer, index),) = neuron_pairs(neuron)
            rows, pairs = compare(graphs, layer, index, classes)
            others = rows[pairs.second[:k]]
            neurons = np.full(len(others), find_row(graphs, layer, index))
        else:
            pairs = Similarity(Forest.of(graphs), classes).all(least)
            neurons, others = pairs.first[:k], pairs.second[:k]
        measures = {measure: getattr(pairs, measure)[:k] for measure in MEASURES}
        columns = _columns_of(graphs, neurons) | _columns_of(graphs, others, "other_")
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

        Columns: name, layer, neuron, score (how many times as likely repetition makes firing, at the least), probabilities
        of firing on repeated and on first occurrences.
        """
        from actstore.engine.graphs.repeats import measure_repeats
        from actstore.store.capture.saturation import overflow_sentences

        opened = self._store.capture(capture)
        repeats = measure_repeats(opened, site=site, share=share)
        rows = repeats.ranked(least_fires)[:k]
        layers, indices = repeats.layer[rows], repeats.neuron[rows]
        names = ("score", "repeated", "first", "fires_repeated", "fires_first", "same_repeated", "same_first")
        measures = {name: getattr(repeats, name)[rows] for name in names}
        table = pa.table(neuron_columns(layers, indices) | measures)
        return Answer(Table(table), repeats, tuple(overflow_sentences(opened, [site])))


def _path_table(store: Root, result: SearchResult) -> Table:
    matches = [(matched, path) for matched in result.neurons for path in matched.paths]
    pairs = [parse_neuron(matched.neuron) for matched, _ in matches]
    columns = {
        **neuron_columns([layer for layer, _ in pairs], [index for _, index in pairs]),
        "score": pa.array([matched.score for matched, _ in matches], pa.float64()),
        "path": pa.array([_path_text(store, path) for _, path in matches], pa.string()),
        "probability": pa.array([path.probability for _, path in matches], pa.float64()),
        "fires": pa.array([path.fires for _, path in matches], pa.int64()),
        "count": pa.array([path.count for _, path in matches], pa.int64()),
    }
    return Table(pa.table(columns))


def _path_text(store: Root, path: PathMatch) -> str:
    texts = ("…" if token == -1 else "" if token < 0 else store.token_text(token) for token in reversed(path.tokens))
    return "".join(texts)


def _listed(tokens: str | int | Sequence[str | int]) -> list[str | int]:
    return [tokens] if isinstance(tokens, str | int) else list(tokens)


def _columns_of(graphs: Graphs, rows: np.ndarray, prefix: str = "") -> dict[str, pa.Array]:
    layers, indices = (graphs.neurons[column].to_numpy()[rows] for column in ("layer", "neuron"))
    return neuron_columns(layers, indices, prefix)
