"""Products of sparse matrices [neuron, column] with each other's transpose, one block of rows at a time.

Columns that many neurons have go through a dense product, the others through sorted lists: a pair of entries costs 50 ns in a
list; a column of a dense product costs 3 ms for ten thousand neurons squared.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE: Final = 1 / 40
"""Columns that more than this share of the neurons have are multiplied densely."""
DENSE_BYTES: Final = 1 << 28
"""Maximum number of bytes of the dense columns; those of most neurons are taken first."""
_PAIRS: Final = 1 << 22
"""Number of pairs of entries in memory at once."""


class Products:
    """The sum over terms of left[term] · right[term]ᵀ, shape [neuron, neuron], of matrices with entries in the same cells."""

    def __init__(
        self,
        offsets: NDArray[np.int64],
        columns: NDArray[np.int64],
        left: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> None:
        """The entries of neuron i are offsets[i]:offsets[i + 1] of `columns` [entry], `left` and `right` [term, entry]."""
        self._offsets, self._columns, self._left, self._right = offsets, columns, left, right
        self.n_neurons = len(offsets) - 1
        degree = np.bincount(columns)
        shared = np.flatnonzero(degree > max(2.0, DENSE * self.n_neurons))
        n_dense = DENSE_BYTES // max(1, 8 * len(left) * self.n_neurons)
        shared = shared[np.argsort(-degree[shared], kind="stable")][:n_dense]
        self._dense = np.full(len(degree), -1)
        self._dense[shared] = np.arange(len(shared))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[neuron] the number of its entries."""
        return np.diff(self._offsets)

    def rows(self, first: int, stop: int) -> NDArray[np.float64]:
        """Rows first…stop of the product; shape [stop - first, neuron]."""
        entries = slice(int(self._offsets[first]), int(self._offsets[stop]))
        row = np.repeat(np.arange(stop - first), self.sizes[first:stop])
        columns, left = self._columns[entries], self._left[:, entries]
        is_dense = self._dense[columns] >= 0
        out = self._dense_rows(stop - first, row[is_dense], columns[is_dense], left[:, is_dense])
        self._add_listed(out, row[~is_dense], columns[~is_dense], left[:, ~is_dense])
        return out

    def _spread(
        self, n_rows: int, row: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The dense columns of some rows, one term after another; shape [row, term · column]."""
        n_terms, width = len(values), int(self._dense.max(initial=-1)) + 1
        spread = np.zeros((n_rows, n_terms, width))
        for term in range(n_terms):
            spread[row, term, self._dense[columns]] = values[term]
        return spread.reshape(n_rows, n_terms * width)

    @cached_property
    def _dense_right(self) -> NDArray[np.float64]:
        row = np.repeat(np.arange(self.n_neurons), self.sizes)
        is_dense = self._dense[self._columns] >= 0
        return self._spread(self.n_neurons, row[is_dense], self._columns[is_dense], self._right[:, is_dense])

    def _dense_rows(
        self, n_rows: int, row: NDArray[np.int64], columns: NDArray[np.int64], left: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        product: NDArray[np.float64] = self._spread(n_rows, row, columns, left) @ self._dense_right.T
        return product

    @cached_property
    def _lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """The start of each column's list, and the neurons and `right` values of all lists."""
        listed = np.flatnonzero(self._dense[self._columns] < 0)
        order = listed[np.argsort(self._columns[listed], kind="stable")]
        starts = np.searchsorted(self._columns[order], np.arange(len(self._dense) + 1))
        neuron = np.repeat(np.arange(self.n_neurons), self.sizes)[order]
        return starts, neuron, self._right[:, order]

    def _add_listed(
        self, out: NDArray[np.float64], row: NDArray[np.int64], columns: NDArray[np.int64], left: NDArray[np.float64]
    ) -> None:
        starts, neuron, right = self._lists
        n = starts[columns + 1] - starts[columns]
        # Runs of entries with about _PAIRS pairs each.
        borders = np.flatnonzero(np.diff(np.cumsum(n) // _PAIRS)) + 1
        for first, stop in zip([0, *borders.tolist()], [*borders.tolist(), len(n)], strict=True):
            run, ends = slice(first, stop), np.cumsum(n[first:stop])
            if not len(ends) or not ends[-1]:
                continue
            partners = np.repeat(starts[columns[run]] - ends + n[run], n[run]) + np.arange(ends[-1])
            products = np.zeros(len(partners))
            for term in range(len(left)):
                products += np.repeat(left[term, run], n[run]) * right[term, partners]
            cells = np.repeat(row[run] * self.n_neurons, n[run]) + neuron[partners]
            out += np.bincount(cells, products, minlength=out.size).reshape(out.shape)
