"""What an evaluation keeps of each neuron: where it fires in the evidence, and what it does in its test windows.

Reads captures. Knows nothing about graphs but the windows they are to predict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.engine.graphs.contexts import check_captures, order_contexts
from actstore.engine.graphs.split import Split, Windows
from actstore.engine.graphs.values import silent_means
from actstore.kernels.suffix_trie.api import Nodes, predict
from actstore.store.capture.overflow import saturate
from actstore.store.capture.saturation import overflows_in_any, saturated_maxima

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actstore.engine.graphs.contexts import Contexts
    from actstore.engine.graphs.split import SplitSettings
    from actstore.store.reader import Capture


class Sample(NamedTuple):
    """What the evaluation keeps of one neuron."""

    neuron: int
    maximum: float
    """The largest finite activation; 0 where the neuron never fires."""
    ranks: NDArray[np.int32]
    """Where it fires in the evidence, ascending; `values` there in shares of the maximum."""
    values: NDArray[np.float32]
    silent: NDArray[np.float32]
    """Of each of these, the mean share of the maximum where the neuron does not fire at the same token of the evidence."""
    rest: float
    """Mean share of the maximum elsewhere in the evidence."""
    held: NDArray[np.int32]
    """Ranks that are not evidence."""
    build: NDArray[np.int32]
    """Ranks of the exemplars to build from."""
    test: HeldOut
    on_test: NDArray[np.float32]
    """Shares of the maximum at the text of the test exemplars, and of the ordinary windows."""
    on_ordinary: NDArray[np.float32]
    n_firing: int
    """Windows in which it fires."""


class HeldOut:
    """Some windows to predict: what was read, and which of it is text."""

    def __init__(self, windows: Windows, chosen: NDArray[np.int64]) -> None:
        tokens = windows.tokens(chosen)
        text = windows.text[tokens]
        self.tokens = tokens[text]
        self.ids, self.begins, places = windows.inputs(chosen)
        self.places = places[text]

    def predict(
        self, nodes: Nodes, thresholds: NDArray[np.float32], threads: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Whether each neuron is said to fire, and its predicted activation; shape [neuron, text token]."""
        if not len(self.ids):
            nothing = np.empty((len(thresholds), 0), np.float32)
            return nothing > 0, nothing
        found = predict(nodes, self.ids, self.begins, threads)
        says = (found.node >= 0) & (found.probability >= thresholds[:, None])
        return says[:, self.places], found.value[:, self.places]


class Reader:
    """Reads neurons of a capture, with further captures as evidence."""

    def __init__(
        self, captures: Sequence[Capture], split: SplitSettings, *, site: str, share: float, max_depth: int
    ) -> None:
        """The first of `captures` is tested on; refuses captures whose contexts or values are not known."""
        check_captures(captures)
        self.captures, self.site, self.share = captures, site, share
        self.windows = Windows(captures)
        self.split = Split(self.windows, split)
        # Pairs of tokens are looked up whatever depth the graphs have.
        self.contexts = join_contexts(self.windows, max(1, max_depth))
        self.ordinary = HeldOut(self.windows, self.split.ordinary)

    def read(self, layer: int, neuron: int) -> Sample:
        """What one neuron does in all captures, read once."""
        windows, site = self.windows, self.site
        parts = [capture.activations(layer, neuron, site) for capture in self.captures]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        overflows = overflows_in_any(self.captures, layer, site)
        values = saturate(values[None], overflows[neuron : neuron + 1])[0]
        largest = float(saturated_maxima(self.captures[0], layer, site, overflows)[neuron])
        maximum = largest if 0 < largest < np.inf else 0.0
        exemplars = self.split.exemplars(values, layer, neuron)
        shares: NDArray[np.float32] = (values / np.float32(maximum or 1)).astype(np.float32, copy=False)
        evidence = windows.text & np.isfinite(shares)
        fires = evidence & (shares >= np.float32(self.share)) & (maximum > 0)
        n_firing = np.add.reduceat(fires, windows.start[:-1], dtype=np.int64)[: windows.of_first] > 0
        held = windows.alike(np.concatenate([self.split.ordinary, exemplars.test]))
        evidence[windows.tokens(held)] = False
        fires &= evidence
        tokens = np.flatnonzero(fires)
        order = np.argsort(self.contexts.rank[tokens])
        silent = evidence & ~fires
        elsewhere = shares[silent]
        rest = float(elsewhere.mean(dtype=np.float64)) if len(elsewhere) else 0.0
        ids = self.contexts.ids
        test = HeldOut(windows, exemplars.test)
        return Sample(
            neuron,
            maximum,
            self.contexts.rank[tokens][order],
            shares[tokens][order],
            silent_means(ids, shares, silent, ids[tokens][order], rest).astype(np.float32),
            rest,
            self.contexts.ranks_of_windows(held.tolist()),
            self.contexts.ranks_of_windows(exemplars.build.tolist()),
            test,
            shares[test.tokens],
            shares[self.ordinary.tokens],
            int(n_firing.sum()),
        )


def join_contexts(windows: Windows, max_depth: int) -> Contexts:
    """The contexts of all windows, of however many captures; a window counts as its index in `windows`."""
    index = np.arange(len(windows))
    ids, _, places = windows.inputs(index)
    numbers = np.repeat(index, np.diff(windows.start)).astype(np.int32)
    return order_contexts(ids, places, windows.position, windows.text, numbers, max_depth)


def choose_neurons(
    captures: Sequence[Capture], site: str, neurons: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """The (layer, index) of the neurons asked for, ascending: all of the site for None; refuses what a capture lacks."""
    main = captures[0]
    if neurons is None:
        if site not in main.record.sites:
            main.check_neuron(0, 0, site)
        neurons = [(layer, i) for layer, width in main.record.layers(site).items() for i in range(width)]
    wanted = sorted(set(neurons))
    for layer, neuron in wanted:
        for capture in captures:
            capture.check_neuron(layer, neuron, site)
    return wanted
