"""Neurons of a block compared with others of it, also where some have no value: experts that a token was not routed to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from actstore.engine.devices.device import as_tensor
from actstore.kernels.coactivation.api import Coactivation, coactivation
from actstore.kernels.floats import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actstore.engine.devices.device import Array


def compare(
    chosen: Array, values: Array, counted: NDArray[np.bool_], threshold: float, state: Coactivation | None = None
) -> Coactivation:
    """How `chosen` [chosen, token] went with `values` [neuron, token] at the counted tokens, and at those of `state`.

    Both arrays, or both tensors on one GPU; then so is what comes back, and so must `state` be. counted: [token]. The result
    equals the kernel's. Only, tokens at which all of one side have no value are left out of its products, and counted among
    the firings of the other side afterwards: a pair with a gap costs the kernel some seventy times as much, and to an expert
    every token that goes elsewhere is a gap.
    """
    empty = Coactivation.empty(len(chosen), len(values), threshold, threshold)
    if not isinstance(values, np.ndarray):
        empty = empty.to(values.device)
    without = _without_value(chosen, counted) | _without_value(values, counted)
    found = coactivation(chosen, values, empty, counted & ~without)
    if without.any():
        tokens = np.flatnonzero(without)
        found = replace(
            found,
            chosen_active=found.chosen_active + _count_active(chosen, tokens, empty.chosen_thresholds),
            active=found.active + _count_active(values, tokens, empty.thresholds),
        )
    return found if state is None else state.merge(found)


def _without_value(values: Array, counted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The counted tokens at which every row of `values` [row, token] is NaN; shape [token]."""
    without = np.zeros(len(counted), np.bool_)
    # Where the first row has a value, the others need not be looked at: mostly everywhere.
    tokens = np.flatnonzero(counted & _to_host(_is_nan(values[0])))
    if len(tokens):
        without[tokens] = _to_host(_is_nan(_columns(values, tokens)).all(0))
    return without


def _count_active(values: Array, tokens: NDArray[np.int64], thresholds: Array) -> Array:
    """The number of some tokens at which each row's value is larger than its threshold; shape [row]."""
    columns = _columns(values, tokens)
    return ((decode(columns) if isinstance(columns, np.ndarray) else columns.float()) > thresholds[:, None]).sum(1)


def _columns(values: Array, tokens: NDArray[np.int64]) -> Array:
    """Some tokens' values, of an array or of a tensor."""
    if isinstance(values, np.ndarray):
        return values[:, tokens]
    return values[:, as_tensor(tokens).to(values.device)]


def _is_nan(values: Array) -> Array:
    return np.isnan(decode(values)) if isinstance(values, np.ndarray) else values.isnan()


def _to_host(flags: Array) -> NDArray[np.bool_]:
    host: NDArray[np.bool_] = flags if isinstance(flags, np.ndarray) else flags.cpu().numpy()
    return host


@dataclass(frozen=True)
class Pairs:
    """The measures of pairs of neurons; every array has the shape [chosen, neuron] unless it says otherwise."""

    correlation: NDArray[np.float32]
    """NaN where either neuron's values are all the same, or none are common."""
    jaccard: NDArray[np.float32]
    """NaN where neither neuron ever fires."""
    tokens: NDArray[np.int64]
    """Tokens at which both have a finite value; the correlation is over them."""
    both_fire: NDArray[np.int64]
    """Tokens on which both fire."""
    chosen_fires: NDArray[np.int64]
    """[chosen] tokens on which each fires."""
    fires: NDArray[np.int64]
    """[neuron]"""

    @classmethod
    def of(cls, state: Coactivation) -> Pairs:
        """The measures that a state amounts to."""
        state = state.cpu()
        tokens = np.array(np.broadcast_to(state.count, state.comoment.shape))
        return cls(state.pearson(), state.jaccard(), tokens, state.both_active, state.chosen_active, state.active)

    def mirror(self, n: int) -> None:
        """Where the first n columns are the rows, give both orders of a pair the same value: sums are rounded otherwise."""
        arrays: tuple[NDArray[Any], ...] = (self.correlation, self.jaccard, self.tokens, self.both_fire)
        for array in arrays:
            square = array[:, :n]
            array[:, :n] = np.triu(square) + np.triu(square, 1).T

    def transposed(self, first: int) -> Pairs:
        """The same for the columns from `first` on, as rows."""
        return Pairs(
            self.correlation[:, first:].T,
            self.jaccard[:, first:].T,
            self.tokens[:, first:].T,
            self.both_fire[:, first:].T,
            self.fires[first:],
            self.chosen_fires,
        )
