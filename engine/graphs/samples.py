"""What an evaluation needs of each neuron: where it fires in the evidence, and its activations in its test windows."""

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
    """What an evaluation needs of one neuron. Values are shares of the neuron's maximum."""

    neuron: int
    maximum: float
    """The largest finite activation; 0 where the neuron never fires."""
    ranks: NDArray[np.int32]
    """[event] the ranks in the evidence at which it fires, ascending."""
    values: NDArray[np.float32]
    """[event] its activations there."""
    silent: NDArray[np.float32]
    """[event] the mean activation at occurrences of the same token in the evidence at which it does not fire."""
    rest: float
    """Mean activation in the evidence where it does not fire."""
    held_out: NDArray[np.int32]
    """Ranks that are not evidence."""
    build: NDArray[np.int32]
    """Ranks of the exemplars to build from."""
    test: HeldOutWindows
    """Its test exemplars."""
    on_test: NDArray[np.float32]
    """[token] its activations at the text of the test exemplars."""
    on_ordinary: NDArray[np.float32]
    """[token] its activations at the text of the ordinary windows."""
    n_firing: int
    """Number of windows in which it fires."""


class HeldOutWindows:
    """Windows on which graphs are tested: the tokens that were read, and which of them are text."""

    def __init__(self, windows: Windows, selection: NDArray[np.int64]) -> None:
        tokens = windows.tokens(selection)
        text = windows.text[tokens]
        self.tokens = tokens[text]
        self.ids, self.begins, positions = windows.inputs(selection)
        self.positions = positions[text]

    def predict(
        self, nodes: Nodes, thresholds: NDArray[np.float32], threads: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Whether each neuron is predicted to fire, and its predicted activation; shape [neuron, text token]."""
        if not len(self.ids):
            nothing = np.empty((len(thresholds), 0), np.float32)
            return nothing > 0, nothing
        predictions = predict(nodes, self.ids, self.begins, threads)
        fires = (predictions.node >= 0) & (predictions.probability >= thresholds[:, None])
        return fires[:, self.positions], predictions.value[:, self.positions]


class SampleReader:
    """Reads the samples of neurons of a capture, with further captures as evidence."""

    def __init__(
        self, captures: Sequence[Capture], split: SplitSettings, *, site: str, share: float, max_depth: int
    ) -> None:
        """The first of `captures` has the test windows; `InvalidInputError` as by `check_captures`."""
        check_captures(captures)
        self.captures, self.site, self.share = captures, site, share
        self.windows = Windows(captures)
        self.split = Split(self.windows, split)
        # Pairs of tokens are looked up whatever depth the graphs have.
        self.contexts = join_contexts(self.windows, max(1, max_depth))
        self.ordinary = HeldOutWindows(self.windows, self.split.ordinary)

    def read(self, layer: int, neuron: int) -> Sample:
        """The sample of one neuron; its activations are read once."""
        windows, site = self.windows, self.site
        parts = [capture.activations(layer, neuron, site) for capture in self.captures]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        overflows = overflows_in_any(self.captures, layer, site)
        values = saturate(values[None], overflows[neuron : neuron + 1])[0]
        largest = float(saturated_maxima(self.captures[0], layer, site, overflows)[neuron])
        maximum = largest if 0 < largest < np.inf else 0.0
        exemplars = self.split.exemplars(values, layer, neuron)
        shares: NDArray[np.float32] = (values / np.float32(maximum or 1)).astype(np.float32, copy=False)
        fires = windows.text & np.isfinite(shares) & (shares >= np.float32(self.share)) & (maximum > 0)
        n_firing = np.add.reduceat(fires, windows.start[:-1], dtype=np.int64)[: windows.n_first] > 0
        held_out = windows.copies_of(np.concatenate([self.split.ordinary, exemplars.test]))
        learned = find_evidence(self.contexts, windows, shares, fires, held_out)
        test = HeldOutWindows(windows, exemplars.test)
        return Sample(
            neuron,
            maximum,
            learned.ranks,
            learned.values,
            learned.silent,
            learned.rest,
            learned.held_out,
            self.contexts.ranks_of_windows(exemplars.build.tolist()),
            test,
            shares[test.tokens],
            shares[self.ordinary.tokens],
            int(n_firing.sum()),
        )


class Evidence(NamedTuple):
    """Where one neuron fires in the windows that a graph may learn from; fields as of `Sample`."""

    ranks: NDArray[np.int32]
    values: NDArray[np.float32]
    silent: NDArray[np.float32]
    rest: float
    held_out: NDArray[np.int32]


def find_evidence(
    contexts: Contexts,
    windows: Windows,
    shares: NDArray[np.float32],
    fires: NDArray[np.bool_],
    held_out: NDArray[np.int64],
) -> Evidence:
    """What may be learned of a neuron outside of the windows `held_out`.

    shares: [token] its activations, as shares of its maximum. fires: [token] whether it fires, at text only.
    """
    evidence = windows.text & np.isfinite(shares)
    evidence[windows.tokens(held_out)] = False
    fires = fires & evidence
    tokens = np.flatnonzero(fires)
    order = np.argsort(contexts.rank[tokens])
    silent = evidence & ~fires
    elsewhere = shares[silent]
    rest = float(elsewhere.mean(dtype=np.float64)) if len(elsewhere) else 0.0
    ids = contexts.ids
    return Evidence(
        contexts.rank[tokens][order],
        shares[tokens][order],
        silent_means(ids, shares, silent, ids[tokens][order], rest).astype(np.float32),
        rest,
        contexts.ranks_of_windows(held_out.tolist()),
    )


def join_contexts(windows: Windows, max_depth: int) -> Contexts:
    """The contexts of all windows of all captures; the number of a window is its index in `windows`."""
    index = np.arange(len(windows))
    ids, _, positions = windows.inputs(index)
    numbers = np.repeat(index, np.diff(windows.start)).astype(np.int32)
    return order_contexts(ids, positions, windows.position, windows.text, numbers, max_depth)
