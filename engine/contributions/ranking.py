"""The neurons with the largest scores of each ranking, kept while layers stream by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actstore.store.neurons import neuron_names

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Ranked(NamedTuple):
    """The neurons of one ranking, best first."""

    layers: NDArray[np.int64]
    neurons: NDArray[np.int64]
    scores: NDArray[np.float64]
    totals: NDArray[np.float64]
    n_tokens: int
    """Positions that the scores are a mean over."""

    def names(self) -> list[str]:
        """The neurons' names, such as `L3.N17`."""
        return neuron_names(self.layers.tolist(), self.neurons.tolist())


class Ranking:
    """The k largest scores of every row over all layers added; ties go to the layer added first, then the smaller neuron."""

    def __init__(self, k: int, n_tokens: NDArray[np.int64]) -> None:
        """A ranking for every entry of `n_tokens`, which says how many positions its scores are a mean over."""
        self._k, self._n_tokens = k, n_tokens.copy()
        nothing = np.empty((len(n_tokens), 0))
        self._scores, self._totals = nothing, nothing
        # [row, k, 2] layer and neuron
        self._places = np.empty((len(n_tokens), 0, 2), np.int64)

    def add(self, layer: int, scores: NDArray[np.float64], totals: NDArray[np.float64] | None = None) -> None:
        """Add a layer's scores [row, neuron]; NaN never enters. Totals [row, neuron] are the scores unless given."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        merged = np.concatenate([self._scores, np.take_along_axis(scores, order, 1)], axis=1)
        best = np.argsort(-merged, axis=1, kind="stable")[:, : self._k]  # NaN comes last
        added = np.take_along_axis(scores if totals is None else totals, order, 1)
        places = np.concatenate([self._places, np.stack([np.full(order.shape, layer), order], axis=2)], axis=1)
        self._scores = np.take_along_axis(merged, best, 1)
        self._totals = np.take_along_axis(np.concatenate([self._totals, added], axis=1), best, 1)
        self._places = np.take_along_axis(places, best[:, :, None], 1)

    def rows(self) -> list[Ranked]:
        """Every ranking; fewer than k neurons where fewer have a score."""
        rankings = []
        for row, n_tokens in enumerate(self._n_tokens.tolist()):
            is_ranked = ~np.isnan(self._scores[row])
            layers, neurons = self._places[row, is_ranked].T
            rankings.append(
                Ranked(layers, neurons, self._scores[row, is_ranked], self._totals[row, is_ranked], n_tokens)
            )
        return rankings
